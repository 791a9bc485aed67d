/* The messages that nearly all are: HTTP/1.1, all of it in one read, a length or no body, nothing about it that has two readings.

   `request` and `answer` read exactly those, as httptools would; anything else, right or wrong, is None, and httptools reads it. They accept less than the standard does:
   names of letters, digits, `-` and `_`, values of printable ASCII, no header twice, no transfer coding, no upgrade, no expectation, a connection that stays. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#define MOST_HEADERS 64
#define MOST_DIGITS 9

static const char LOWER[256] = {
    ['-'] = '-', ['_'] = '_', ['0'] = '0', ['1'] = '1', ['2'] = '2', ['3'] = '3', ['4'] = '4', ['5'] = '5', ['6'] = '6', ['7'] = '7',
    ['8'] = '8', ['9'] = '9', ['A'] = 'a', ['B'] = 'b', ['C'] = 'c', ['D'] = 'd', ['E'] = 'e', ['F'] = 'f', ['G'] = 'g', ['H'] = 'h',
    ['I'] = 'i', ['J'] = 'j', ['K'] = 'k', ['L'] = 'l', ['M'] = 'm', ['N'] = 'n', ['O'] = 'o', ['P'] = 'p', ['Q'] = 'q', ['R'] = 'r',
    ['S'] = 's', ['T'] = 't', ['U'] = 'u', ['V'] = 'v', ['W'] = 'w', ['X'] = 'x', ['Y'] = 'y', ['Z'] = 'z', ['a'] = 'a', ['b'] = 'b',
    ['c'] = 'c', ['d'] = 'd', ['e'] = 'e', ['f'] = 'f', ['g'] = 'g', ['h'] = 'h', ['i'] = 'i', ['j'] = 'j', ['k'] = 'k', ['l'] = 'l',
    ['m'] = 'm', ['n'] = 'n', ['o'] = 'o', ['p'] = 'p', ['q'] = 'q', ['r'] = 'r', ['s'] = 's', ['t'] = 't', ['u'] = 'u', ['v'] = 'v',
    ['w'] = 'w', ['x'] = 'x', ['y'] = 'y', ['z'] = 'z',
}; /* what a name may have, in lower case; 0 is anything else */

typedef struct {
    const char *at, *end;
} Text;

static int is(Text text, const char *word)
{
    size_t size = strlen(word);
    return (size_t)(text.end - text.at) == size && !memcmp(text.at, word, size);
}

/* The same in any case; `word` is in lower case. */
static int says(Text text, const char *word)
{
    for (; text.at < text.end && *word; text.at++, word++)
        if (LOWER[(unsigned char)*text.at] != *word) return 0;
    return text.at == text.end && !*word;
}

static int taken(Text *text, const char *word)
{
    size_t size = strlen(word);
    if ((size_t)(text->end - text->at) < size || memcmp(text->at, word, size)) return 0;
    text->at += size;
    return 1;
}

typedef struct {
    PyObject *headers; /* a dict: names in lower case */
    Py_ssize_t length; /* of the body */
    int has_host, has_length;
} Head;

/* A header that decides how the message is read; 0 for one that is not as nearly all are. */
static int counts(Head *head, Text name, Text value)
{
    if (is(name, "host")) head->has_host = 1;
    if (is(name, "connection")) return says(value, "keep-alive");
    if (is(name, "transfer-encoding") || is(name, "upgrade") || is(name, "expect") || is(name, "proxy-connection")) return 0;
    if (!is(name, "content-length")) return 1;
    if (value.end - value.at > MOST_DIGITS) return 0;
    for (head->length = 0; value.at < value.end; value.at++) {
        if (*value.at < '0' || *value.at > '9') return 0;
        head->length = 10 * head->length + (*value.at - '0');
    }
    head->has_length = 1;
    return 1;
}

/* The headers, up to and with the blank line: 1 if they are as nearly all are, 0 if not, -1 for an exception. */
static int headers_read(Text *text, Head *head, Py_ssize_t most)
{
    char name[64];
    for (Py_ssize_t number = 0;; number++) {
        if (taken(text, "\r\n")) return 1;
        if (number >= most || number >= MOST_HEADERS) return 0;
        size_t size = 0;
        for (char c; text->at < text->end && (c = LOWER[(unsigned char)*text->at]); text->at++) {
            if (size == sizeof name) return 0;
            name[size++] = c;
        }
        if (!size || text->at == text->end || *text->at++ != ':') return 0;
        while (text->at < text->end && *text->at == ' ') text->at++;
        Text value = {text->at, text->at};
        while (text->at < text->end && *text->at >= ' ' && *text->at <= '~') text->at++;
        value.end = text->at;
        if (!taken(text, "\r\n")) return 0;
        if (value.at == value.end || value.end[-1] == ' ') return 0;
        if (!counts(head, (Text){name, name + size}, value)) return 0;

        PyObject *key = PyBytes_FromStringAndSize(name, (Py_ssize_t)size);
        PyObject *said = PyBytes_FromStringAndSize(value.at, value.end - value.at);
        int is_new = key && said ? !PyDict_Contains(head->headers, key) : -1;
        if (is_new == 1 && PyDict_SetItem(head->headers, key, said)) is_new = -1;
        Py_XDECREF(key);
        Py_XDECREF(said);
        if (is_new != 1) return PyErr_Occurred() ? -1 : 0;
    }
}

/* The same of a message that begins; `head` has something to let go of unless it is -1. */
static int head_read(Text *text, Head *head, Py_ssize_t most)
{
    *head = (Head){.headers = PyDict_New()};
    if (!head->headers) return -1;
    int is_plain = headers_read(text, head, most);
    if (is_plain < 0) Py_CLEAR(head->headers);
    return is_plain;
}

/* The tuple of what was read and the body; steals `first` and `second`, of which the latter may be none. NULL where making one of them failed. */
static PyObject *message(PyObject *first, PyObject *second, PyObject *headers, Text body)
{
    PyObject *whole = PyBytes_FromStringAndSize(body.at, body.end - body.at), *answer = NULL;
    if (first && whole && !PyErr_Occurred()) answer = second ? PyTuple_Pack(4, first, second, headers, whole) : PyTuple_Pack(3, first, headers, whole);
    Py_XDECREF(first);
    Py_XDECREF(second);
    Py_XDECREF(whole);
    return answer;
}

static PyObject *none_of(Head *head)
{
    Py_DECREF(head->headers);
    Py_RETURN_NONE;
}

static const char *METHODS[] = {"POST", "GET", "HEAD"};
static PyObject *method_names[3];

static PyObject *method_of(Text *text)
{
    for (int i = 0; i < 3; i++)
        if (taken(text, METHODS[i])) return taken(text, " ") ? method_names[i] : NULL;
    return NULL;
}

/* A path of which nothing has to be decoded, and no query. */
static Text path_of(Text *text)
{
    Text path = {text->at, text->at};
    if (text->at == text->end || *text->at != '/') return path;
    while (text->at < text->end && (LOWER[(unsigned char)*text->at] || *text->at == '/' || *text->at == '.')) text->at++;
    path.end = text->at;
    return path;
}

static int text_of(PyObject *const *args, Py_ssize_t number, Py_ssize_t wanted, Text *text)
{
    if (number != wanted || !PyBytes_Check(args[0])) {
        PyErr_Format(PyExc_TypeError, "bytes and %zd limits are wanted", wanted - 1);
        return 0;
    }
    text->at = PyBytes_AS_STRING(args[0]);
    text->end = text->at + PyBytes_GET_SIZE(args[0]);
    return 1;
}

PyDoc_STRVAR(request_says, "request(data, most_head_bytes, most_headers, most_target_bytes): method, path, headers and body, or None.");

static PyObject *request(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    Text text;
    if (!text_of(args, number, 4, &text)) return NULL;
    Py_ssize_t most_bytes = PyLong_AsSsize_t(args[1]), most = PyLong_AsSsize_t(args[2]), most_target = PyLong_AsSsize_t(args[3]);
    if (PyErr_Occurred()) return NULL;
    const char *begin = text.at;
    PyObject *method = method_of(&text);
    if (!method) Py_RETURN_NONE;
    Text path = path_of(&text);
    Py_ssize_t path_size = path.end - path.at;
    if (!path_size || path_size > most_target || !taken(&text, " HTTP/1.1\r\n")) Py_RETURN_NONE;
    Head head;
    int is_plain = head_read(&text, &head, most);
    if (is_plain < 0) return NULL;
    if (!is_plain || !head.has_host || text.at - begin > most_bytes || text.end - text.at != head.length) return none_of(&head);
    PyObject *answer = message(Py_NewRef(method), PyUnicode_FromStringAndSize(path.at, path_size), head.headers, text);
    Py_DECREF(head.headers);
    return answer;
}

PyDoc_STRVAR(answer_says, "answer(data, most_head_bytes, most_headers): status, headers and body, or None.");

static PyObject *answer(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    Text text;
    if (!text_of(args, number, 3, &text)) return NULL;
    Py_ssize_t most_bytes = PyLong_AsSsize_t(args[1]), most = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred()) return NULL;
    const char *begin = text.at;
    if (!taken(&text, "HTTP/1.1 ") || text.end - text.at < 4) Py_RETURN_NONE;
    long status = 0;
    for (int i = 0; i < 3; i++, text.at++) {
        if (*text.at < '0' || *text.at > '9') Py_RETURN_NONE;
        status = 10 * status + (*text.at - '0');
    }
    if (status < 200 || status > 599 || status == 204 || status == 304 || *text.at != ' ') Py_RETURN_NONE; /* some have no body */
    while (text.at < text.end && *text.at >= ' ' && *text.at <= '~') text.at++;
    if (!taken(&text, "\r\n")) Py_RETURN_NONE;
    Head head;
    int is_plain = head_read(&text, &head, most);
    if (is_plain < 0) return NULL;
    if (!is_plain || !head.has_length || text.at - begin > most_bytes || text.end - text.at != head.length) return none_of(&head);
    PyObject *answer = message(PyLong_FromLong(status), NULL, head.headers, text);
    Py_DECREF(head.headers);
    return answer;
}

/* ---- what is sent */

static int is_header(PyObject *one)
{
    return PyTuple_Check(one) && PyTuple_GET_SIZE(one) == 2 && PyBytes_Check(PyTuple_GET_ITEM(one, 0)) && PyBytes_Check(PyTuple_GET_ITEM(one, 1));
}

static char *put(char *at, const char *bytes, Py_ssize_t size)
{
    memcpy(at, bytes, (size_t)size);
    return at + size;
}

static char *put_bytes(char *at, PyObject *bytes) { return put(at, PyBytes_AS_STRING(bytes), PyBytes_GET_SIZE(bytes)); }

PyDoc_STRVAR(head_says, "head(first, headers, last): the first lines, `headers` as lines, and the last, as bytes.");

static PyObject *head(PyObject *module, PyObject *const *args, Py_ssize_t number)
{
    if (number != 3 || !PyBytes_Check(args[0]) || !PyList_Check(args[1]) || !PyBytes_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "bytes, a list of pairs of bytes, and bytes are wanted");
        return NULL;
    }
    Py_ssize_t size = PyBytes_GET_SIZE(args[0]) + PyBytes_GET_SIZE(args[2]), headers = PyList_GET_SIZE(args[1]);
    for (Py_ssize_t i = 0; i < headers; i++) {
        PyObject *one = PyList_GET_ITEM(args[1], i);
        if (!is_header(one)) {
            PyErr_SetString(PyExc_TypeError, "a header is a pair of bytes");
            return NULL;
        }
        size += PyBytes_GET_SIZE(PyTuple_GET_ITEM(one, 0)) + PyBytes_GET_SIZE(PyTuple_GET_ITEM(one, 1)) + 4;
    }
    PyObject *whole = PyBytes_FromStringAndSize(NULL, size);
    if (!whole) return NULL;
    char *at = put_bytes(PyBytes_AS_STRING(whole), args[0]);
    for (Py_ssize_t i = 0; i < headers; i++) {
        PyObject *one = PyList_GET_ITEM(args[1], i);
        at = put(put_bytes(at, PyTuple_GET_ITEM(one, 0)), ": ", 2);
        at = put(put_bytes(at, PyTuple_GET_ITEM(one, 1)), "\r\n", 2);
    }
    put_bytes(at, args[2]);
    return whole;
}

static PyMethodDef functions[] = {
    {"head", (PyCFunction)(void (*)(void))head, METH_FASTCALL, head_says},
    {"request", (PyCFunction)(void (*)(void))request, METH_FASTCALL, request_says},
    {"answer", (PyCFunction)(void (*)(void))answer, METH_FASTCALL, answer_says},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "polypod_heads", NULL, -1, functions};

PyMODINIT_FUNC PyInit_polypod_heads(void)
{
    for (int i = 0; i < 3; i++)
        if (!method_names[i] && !(method_names[i] = PyUnicode_InternFromString(METHODS[i]))) return NULL;
    return PyModule_Create(&definition);
}
