/* The functions of rows.h as a module of Python's: called through ctypes each would take longer than what it does.

   Every function takes the address of a `Rows` first. Whoever calls keeps the columns where it says they are; a row that they do not have is an IndexError. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "types.h"
#include "prompts.h"
#include "rows.h"

#define MOST_WARM 512 /* rows with a part of the prompt in their caches, without asking for memory */

static Rows *rows_at(PyObject *address) { return (Rows *)PyLong_AsVoidPtr(address); }

static i64 whole(PyObject *number) { return (i64)PyLong_AsLongLong(number); }

static double real(PyObject *number) { return PyFloat_AsDouble(number); }

static int has(Py_ssize_t given, Py_ssize_t wanted)
{
    if (given == wanted) return 1;
    PyErr_Format(PyExc_TypeError, "%zd arguments, not %zd", wanted, given);
    return 0;
}

/* Whether there is such a row; an exception if not. */
static int has_row(const Rows *rows, i64 row)
{
    if (row >= 0 && row < rows->rows) return 1;
    PyErr_Format(PyExc_IndexError, "row %lld of %lld", (long long)row, (long long)rows->rows);
    return 0;
}

static PyObject *none_unless_failed(void) { return PyErr_Occurred() ? NULL : Py_NewRef(Py_None); }

static PyObject *call_have_room(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (!has(number, 2)) return NULL;
    const Rows *rows = rows_at(args[0]);
    double now_s = real(args[1]);
    return PyErr_Occurred() ? NULL : PyBool_FromLong((long)rows_have_room(rows, now_s));
}

/* What is cached where: row to tokens. How many, or -1 for an exception; the arrays are `warm` itself where they fit. */
static Py_ssize_t warm_rows(const Rows *rows, PyObject *cached, i64 **warm)
{
    Py_ssize_t number = PyDict_GET_SIZE(cached), at = 0, i = 0;
    if (number > MOST_WARM && !(*warm = PyMem_Malloc(2 * (size_t)number * sizeof **warm))) {
        PyErr_NoMemory();
        return -1;
    }
    for (PyObject *row, *tokens; i < number && PyDict_Next(cached, &at, &row, &tokens); i++) {
        (*warm)[i] = whole(row);
        (*warm)[number + i] = whole(tokens);
        if (PyErr_Occurred() || !has_row(rows, (*warm)[i])) return -1;
    }
    return number;
}

static PyObject *call_best(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (!has(number, 9)) return NULL;
    Rows *rows = rows_at(args[0]);
    double now_s = real(args[1]), kept = real(args[2]), output_tokens = real(args[5]), mean_kv_tokens = real(args[6]);
    i64 input_tokens = whole(args[3]), need_tokens = whole(args[4]);
    const u8 *among = args[7] == Py_None ? NULL : PyLong_AsVoidPtr(args[7]);
    if (PyErr_Occurred()) return NULL;
    if (!PyDict_Check(args[8])) {
        PyErr_SetString(PyExc_TypeError, "what is cached is a dict of rows and tokens");
        return NULL;
    }
    i64 here[2 * MOST_WARM], *warm = here;
    Py_ssize_t rows_warm = warm_rows(rows, args[8], &warm);
    i64 ties = 0;
    if (rows_warm >= 0)
        ties = rows_best(
            rows, now_s, kept, input_tokens, need_tokens, output_tokens, mean_kv_tokens, among, rows_warm, warm, warm + rows_warm
        );
    if (warm != here) PyMem_Free(warm);
    return rows_warm < 0 ? NULL : PyLong_FromLongLong(ties);
}

static PyObject *call_dispatched(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (!has(number, 8)) return NULL;
    Rows *rows = rows_at(args[0]);
    i64 row = whole(args[1]), input_tokens = whole(args[4]), cached = whole(args[6]), is_streamed = PyObject_IsTrue(args[7]);
    double now_s = real(args[2]), grown = real(args[3]), mean_kv_tokens = real(args[5]);
    if (PyErr_Occurred() || !has_row(rows, row)) return NULL;
    Added added;
    rows_dispatched(rows, row, now_s, grown, input_tokens, mean_kv_tokens, cached, is_streamed, &added);
    PyObject *answer = PyTuple_New(4);
    double values[] = {added.prompt_s, added.first_s, added.token_s, added.model_token_s};
    for (int i = 0; answer && i < 4; i++) {
        PyObject *value = PyFloat_FromDouble(values[i]);
        if (!value) Py_CLEAR(answer);
        else PyTuple_SET_ITEM(answer, i, value);
    }
    return answer;
}

static PyObject *call_prompt_over(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (!has(number, 5)) return NULL;
    Rows *rows = rows_at(args[0]);
    i64 row = whole(args[1]), is_given_up = PyObject_IsTrue(args[4]);
    double now_s = real(args[2]), prompt_s = real(args[3]);
    if (!PyErr_Occurred() && has_row(rows, row)) rows_prompt_over(rows, row, now_s, prompt_s, is_given_up);
    return none_unless_failed();
}

static PyObject *call_left(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (!has(number, 3)) return NULL;
    Rows *rows = rows_at(args[0]);
    i64 row = whole(args[1]);
    double kv_tokens = real(args[2]);
    if (!PyErr_Occurred() && has_row(rows, row)) rows_left(rows, row, kv_tokens);
    return none_unless_failed();
}

static PyObject *call_refresh(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (!has(number, 2)) return NULL;
    Rows *rows = rows_at(args[0]);
    i64 row = whole(args[1]);
    if (!PyErr_Occurred() && has_row(rows, row)) rows_refresh(rows, row);
    return none_unless_failed();
}

#define CALL(name) {#name, (PyCFunction)(void (*)(void))call_##name, METH_FASTCALL, NULL}

static PyMethodDef calls[] = {
    CALL(have_room), CALL(best), CALL(dispatched), CALL(prompt_over), CALL(left), CALL(refresh), {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "polypod_rows", NULL, -1, calls};

PyMODINIT_FUNC PyInit_polypod_rows(void) { return PyModule_Create(&definition); }
