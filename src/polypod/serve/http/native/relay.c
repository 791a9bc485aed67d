/* Streams passed from an engine's socket to a client's, as long as nothing about them needs thought.

   A `Poller` waits for many engines at once. A `Relay` is one stream: what is read from the engine is passed on if it is whole chunks of HTTP/1.1 that hold whole
   server-sent events, and the client takes all of it at once. Anything else stops the relay and is handed back as it came: `on_stop(raw, unsent)` gets the bytes that were
   read and not passed on, and those that were passed on and not taken; `raw` is None where memory ran out and some of the stream is lost. Python's twin (`EngineConnection`, `EventStream`, `ClientConnection`) goes on from
   there, knowing what it would have known: the events counted, the last three parts, and when the last one came.

   Whoever owns the sockets may close them, and others get their numbers: before each read and each write the kernel's cookie of the socket is compared. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define READ_BYTES 65536  /* at once; a longer read is two */
#define HEADROOM_BYTES 16 /* before what was read: a chunk's head is put there */
#define MOST_CHUNKS 512   /* of one read */
#define AT_ONCE 128       /* engines looked at in one go */
#define KEPT 3            /* parts at the end, as `EventStream` keeps them */

typedef struct {
    char *bytes;
    size_t size, room;
} Part;

typedef struct {
    PyObject_HEAD
    int epoll;
    PyObject *relays; /* a set of those that the kernel has the addresses of: they run, or their sockets were closed under them */
    char buffer[HEADROOM_BYTES + READ_BYTES + 2];
} Poller;

typedef struct {
    PyObject_HEAD
    Poller *poller;
    PyObject *on_stop;
    int engine, client, runs;
    uint64_t engine_cookie, client_cookie;
    int64_t events;
    double last_s;
    int64_t parts; /* all that passed; the last KEPT of them are kept */
    Part kept[KEPT];
} Relay;

/* What a relay that stops hands back; NULL is nothing. */
typedef struct {
    PyObject *raw, *unsent;
    int is_lost; /* some of the stream: memory ran out */
} Rest;

static int cookie_of(int socket, uint64_t *cookie)
{
#ifdef SO_COOKIE
    socklen_t size = sizeof *cookie;
    return getsockopt(socket, SOL_SOCKET, SO_COOKIE, cookie, &size);
#else
    errno = ENOTSUP;
    return -1;
#endif
}

static int is_still(int socket, uint64_t expected)
{
    uint64_t cookie;
    return !cookie_of(socket, &cookie) && cookie == expected;
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- bytes */

typedef struct {
    size_t at, size;
} Span;

static int hexadecimal(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* The data of each chunk; how many, or 0 for anything but whole chunks none of which is the last. */
static int chunks_of(const char *bytes, size_t size, Span *spans)
{
    int number = 0;
    size_t at = 0;
    while (at < size) {
        size_t length = 0;
        int digits = 0;
        for (int d; at < size && (d = hexadecimal(bytes[at])) >= 0; at++) {
            if (++digits > 7) return 0;
            length = 16 * length + (size_t)d;
        }
        if (!digits || !length || size - at < length + 4 || number == MOST_CHUNKS) return 0;
        if (bytes[at] != '\r' || bytes[at + 1] != '\n') return 0;
        at += 2;
        spans[number++] = (Span){at, length};
        at += length;
        if (bytes[at] != '\r' || bytes[at + 1] != '\n') return 0;
        at += 2;
    }
    return number;
}

/* Put the chunks' data together, to the front of the buffer; how long they are. */
static size_t joined(char *bytes, const Span *spans, int number)
{
    size_t size = 0;
    for (int i = 0; i < number; i++) {
        memmove(bytes + size, bytes + spans[i].at, spans[i].size);
        size += spans[i].size;
    }
    return size;
}

/* Put a chunk's head before its data, where there is room for it; where it begins. */
static char *chunk_head(char *data, size_t size)
{
    *--data = '\n';
    *--data = '\r';
    do {
        *--data = "0123456789abcdef"[size % 16];
        size /= 16;
    } while (size);
    return data;
}

static int ends_an_event(const char *bytes, size_t size)
{
    if (size >= 2 && !memcmp(bytes + size - 2, "\n\n", 2)) return 1;
    return size >= 4 && !memcmp(bytes + size - 4, "\r\n\r\n", 4);
}

static int64_t events_in(const char *bytes, size_t size)
{
    int64_t number = size >= 5 && !memcmp(bytes, "data:", 5);
    const char *at = bytes, *end = bytes + size;
    while ((at = memchr(at, '\n', (size_t)(end - at)))) {
        at++;
        if (end - at >= 5 && !memcmp(at, "data:", 5)) number++;
    }
    return number;
}

/* ---- a relay */

static int keep(Relay *relay, const char *bytes, size_t size)
{
    Part *part = &relay->kept[relay->parts % KEPT];
    if (part->room < size) {
        char *more = PyMem_Realloc(part->bytes, size);
        if (!more) return -1;
        part->bytes = more;
        part->room = size;
    }
    memcpy(part->bytes, bytes, size);
    part->size = size;
    relay->parts++;
    return 0;
}

/* A socket that was closed before its relay was stopped may still be open in a child: then the kernel keeps the relay's address, and the relay stays. */
static void halt(Relay *relay)
{
    if (!relay->runs) return;
    relay->runs = 0;
    if (!is_still(relay->engine, relay->engine_cookie) || !relay->poller->relays) return;
    if (!epoll_ctl(relay->poller->epoll, EPOLL_CTL_DEL, relay->engine, NULL)) PySet_Discard(relay->poller->relays, (PyObject *)relay);
}

static PyObject *rest_of(Rest *rest, const char *bytes, ssize_t size)
{
    PyObject *made = PyBytes_FromStringAndSize(bytes, size);
    if (made) return made;
    PyErr_Clear(); /* told of by `is_lost` */
    rest->is_lost = 1;
    return NULL;
}

/* What was read goes to the client; whether the relay goes on. If it does not, `rest` says what there is to hand back. No Python runs in here. */
static int passed_on(Relay *relay, Rest *rest)
{
    char *bytes = relay->poller->buffer + HEADROOM_BYTES;
    if (!is_still(relay->engine, relay->engine_cookie)) return 0;
    ssize_t read = recv(relay->engine, bytes, READ_BYTES, MSG_DONTWAIT);
    if (read < 0 && (errno == EAGAIN || errno == EINTR)) return 1;
    if (read <= 0) return 0; /* who reads next hears of it again */

    Span spans[MOST_CHUNKS];
    int number = chunks_of(bytes, (size_t)read, spans);
    int is_plain = number > 0;
    if (is_plain) {
        Span last = spans[number - 1]; /* an event that ends over two chunks is rare enough */
        is_plain = ends_an_event(bytes + last.at, last.size);
    }
    if (!is_plain || !is_still(relay->client, relay->client_cookie)) {
        rest->raw = rest_of(rest, bytes, read);
        return 0;
    }
    size_t size = joined(bytes, spans, number);
    relay->events += events_in(bytes, size);
    relay->last_s = now_s();
    if (keep(relay, bytes, size)) {
        rest->is_lost = 1;
        return 0;
    }
    char *out = chunk_head(bytes, size);
    memcpy(bytes + size, "\r\n", 2);
    size += (size_t)(bytes - out) + 2;
    ssize_t sent = send(relay->client, out, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent == (ssize_t)size) return 1;
    sent = sent < 0 ? 0 : sent; /* one that broke is told of by who writes next */
    rest->unsent = rest_of(rest, out + sent, (ssize_t)size - sent);
    if (!rest->unsent) shutdown(relay->client, SHUT_RDWR); /* it has half a chunk, and no more can follow */
    return 0;
}

static void relay_dealloc(Relay *relay)
{
    PyObject_GC_UnTrack(relay);
    for (int i = 0; i < KEPT; i++) PyMem_Free(relay->kept[i].bytes);
    Py_XDECREF(relay->on_stop);
    Py_XDECREF(relay->poller);
    PyTypeObject *type = Py_TYPE(relay);
    type->tp_free(relay);
    Py_DECREF(type);
}

static int relay_traverse(Relay *relay, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(relay));
    Py_VISIT(relay->on_stop);
    Py_VISIT(relay->poller);
    return 0;
}

static int relay_clear(Relay *relay)
{
    Py_CLEAR(relay->on_stop);
    return 0;
}

static PyObject *relay_stop(Relay *relay, PyObject *unused)
{
    halt(relay);
    Py_CLEAR(relay->on_stop);
    Py_RETURN_NONE;
}

static PyObject *relay_last(Relay *relay, void *unused)
{
    int64_t number = relay->parts < KEPT ? relay->parts : KEPT;
    PyObject *last = PyList_New(number);
    for (int64_t i = 0; last && i < number; i++) {
        Part *part = &relay->kept[(relay->parts - number + i) % KEPT];
        PyObject *bytes = PyBytes_FromStringAndSize(part->bytes, (Py_ssize_t)part->size);
        if (!bytes) {
            Py_CLEAR(last);
            break;
        }
        PyList_SET_ITEM(last, i, bytes);
    }
    return last;
}

static PyMethodDef relay_methods[] = {
    {"stop", (PyCFunction)relay_stop, METH_NOARGS, "Pass nothing on any more; `on_stop` is not called."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef relay_members[] = {
    {"events", T_LONGLONG, offsetof(Relay, events), READONLY, "Events that passed."},
    {"last_s", T_DOUBLE, offsetof(Relay, last_s), READONLY, "When the last part came, on the monotonic clock; 0 if none did."},
    {"runs", T_INT, offsetof(Relay, runs), READONLY, "Whether it passes on what comes."},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef relay_getset[] = {
    {"last", (getter)relay_last, NULL, "The last three parts that passed, oldest first.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot relay_slots[] = {
    {Py_tp_dealloc, relay_dealloc}, {Py_tp_traverse, relay_traverse}, {Py_tp_clear, relay_clear},
    {Py_tp_methods, relay_methods}, {Py_tp_members, relay_members},   {Py_tp_getset, relay_getset},
    {Py_tp_doc, "One stream on its way."}, {0, NULL},
};

static PyType_Spec relay_spec = {
    "polypod_relay.Relay", sizeof(Relay), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, relay_slots,
};

/* ---- a poller */

static PyTypeObject *RelayType;

static PyObject *poller_new(PyTypeObject *type, PyObject *args, PyObject *named)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, named, "", names)) return NULL;
    Poller *poller = (Poller *)type->tp_alloc(type, 0);
    if (!poller) return NULL;
    poller->relays = PySet_New(NULL);
    poller->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!poller->relays || poller->epoll < 0) {
        if (poller->epoll < 0) PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(poller);
        return NULL;
    }
    return (PyObject *)poller;
}

static int poller_clear(Poller *poller)
{
    if (poller->epoll >= 0) close(poller->epoll);
    poller->epoll = -1;
    Py_CLEAR(poller->relays);
    return 0;
}

static int poller_traverse(Poller *poller, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(poller));
    Py_VISIT(poller->relays);
    return 0;
}

static void poller_dealloc(Poller *poller)
{
    PyObject_GC_UnTrack(poller);
    poller_clear(poller);
    PyTypeObject *type = Py_TYPE(poller);
    type->tp_free(poller);
    Py_DECREF(type);
}

static PyObject *poller_close(Poller *poller, PyObject *unused)
{
    if (poller->epoll >= 0) {
        PyObject *relays = PySequence_List(poller->relays);
        if (!relays) return NULL;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(relays); i++) halt((Relay *)PyList_GET_ITEM(relays, i));
        Py_DECREF(relays);
        close(poller->epoll);
        poller->epoll = -1;
        PySet_Clear(poller->relays); /* the kernel knows none any more */
    }
    Py_RETURN_NONE;
}

static PyObject *poller_fileno(Poller *poller, PyObject *unused)
{
    return PyLong_FromLong(poller->epoll);
}

static PyObject *poller_relay(Poller *poller, PyObject *args)
{
    int engine, client;
    PyObject *on_stop;
    if (!PyArg_ParseTuple(args, "iiO", &engine, &client, &on_stop)) return NULL;
    if (!PyCallable_Check(on_stop)) {
        PyErr_SetString(PyExc_TypeError, "on_stop has to be called");
        return NULL;
    }
    uint64_t engine_cookie, client_cookie;
    if (cookie_of(engine, &engine_cookie) || cookie_of(client, &client_cookie)) return PyErr_SetFromErrno(PyExc_OSError);
    Relay *relay = (Relay *)RelayType->tp_alloc(RelayType, 0);
    if (!relay) return NULL;
    relay->poller = (Poller *)Py_NewRef(poller);
    relay->on_stop = Py_NewRef(on_stop);
    relay->engine = engine;
    relay->client = client;
    relay->engine_cookie = engine_cookie;
    relay->client_cookie = client_cookie;
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = relay};
    if (PySet_Add(poller->relays, (PyObject *)relay)) goto failed;
    if (epoll_ctl(poller->epoll, EPOLL_CTL_ADD, engine, &wanted)) {
        PyErr_SetFromErrno(PyExc_OSError);
        PySet_Discard(poller->relays, (PyObject *)relay);
        goto failed;
    }
    relay->runs = 1;
    return (PyObject *)relay;
failed:
    Py_DECREF(relay);
    return NULL;
}

/* An exception is told of, and does not keep the others from theirs. */
static void hand_back(Relay *relay, Rest *rest)
{
    PyObject *on_stop = relay->on_stop;
    relay->on_stop = NULL;
    PyObject *none = PyBytes_FromStringAndSize(NULL, 0); /* there is one of it, which takes no memory */
    PyObject *raw = rest->is_lost ? Py_None : rest->raw ? rest->raw : none;
    PyObject *done = on_stop ? PyObject_CallFunctionObjArgs(on_stop, raw, rest->unsent ? rest->unsent : none, NULL) : NULL;
    if (!done && PyErr_Occurred()) PyErr_WriteUnraisable(on_stop);
    Py_XDECREF(done);
    Py_XDECREF(none);
    Py_XDECREF(rest->raw);
    Py_XDECREF(rest->unsent);
    Py_XDECREF(on_stop);
}

/* One that stops hands back at once, so that nothing it has read waits in here. What is told of that may stop any other, and close the poller. */
static PyObject *poller_call(Poller *poller, PyObject *args, PyObject *named)
{
    struct epoll_event ready[AT_ONCE];
    if (poller->epoll < 0) Py_RETURN_NONE;
    int number = epoll_wait(poller->epoll, ready, AT_ONCE, 0);
    for (int i = 0; i < number; i++) Py_INCREF((PyObject *)ready[i].data.ptr);
    for (int i = 0; i < number; i++) {
        Relay *relay = ready[i].data.ptr;
        Rest rest = {NULL, NULL, 0};
        int is_broken = (ready[i].events & EPOLLERR) != 0; /* how is said once: to who reads next */
        if (relay->runs && (is_broken || !passed_on(relay, &rest))) {
            halt(relay);
            hand_back(relay, &rest);
        }
        Py_DECREF(relay);
    }
    Py_RETURN_NONE;
}

static PyMethodDef poller_methods[] = {
    {"fileno", (PyCFunction)poller_fileno, METH_NOARGS, "Ready to be read when an engine is."},
    {"relay", (PyCFunction)poller_relay, METH_VARARGS, "relay(engine, client, on_stop): begin to pass on. Raises OSError."},
    {"close", (PyCFunction)poller_close, METH_NOARGS, "Stop all relays."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot poller_slots[] = {
    {Py_tp_new, poller_new},           {Py_tp_dealloc, poller_dealloc}, {Py_tp_traverse, poller_traverse},
    {Py_tp_clear, poller_clear},       {Py_tp_call, poller_call},       {Py_tp_methods, poller_methods},
    {Py_tp_doc, "Called when `fileno` is ready: passes on what has come."}, {0, NULL},
};

static PyType_Spec poller_spec = {
    "polypod_relay.Poller", sizeof(Poller), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, poller_slots,
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "polypod_relay", NULL, -1, NULL};

PyMODINIT_FUNC PyInit_polypod_relay(void)
{
    PyObject *made = PyModule_Create(&module);
    if (!made) return NULL;
    PyObject *relay = PyType_FromSpec(&relay_spec), *poller = PyType_FromSpec(&poller_spec);
    if (!relay || !poller || PyModule_AddObjectRef(made, "Relay", relay) || PyModule_AddObjectRef(made, "Poller", poller)) {
        Py_XDECREF(relay);
        Py_XDECREF(poller);
        Py_DECREF(made);
        return NULL;
    }
    RelayType = (PyTypeObject *)relay;
    Py_DECREF(poller);
    return made;
}
