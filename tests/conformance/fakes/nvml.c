/* NVML, or with PREFIX=hgml T-Head's HGML: the functions that Polypod calls. A device whose "parent" is another's place is a MIG device of it. */
#include "replay.h"
#ifndef PREFIX
#define PREFIX nvml
#endif
#define GLUE(a, b) a##b
#define NAMED(a, b) GLUE(a, b)
#define F(name) NAMED(PREFIX, name)
typedef struct { unsigned long long total, free, used; } memory;
typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci;

static int parents(int place) {
    for (int i = 0; i < num_devices; i++)
        if (devices[i].parent < 0 && place-- == 0) return i;
    return -1;
}
int F(Init_v2)(void) { return fake_init(); }
int F(InitWithFlags)(unsigned flags) { (void)flags; return fake_init(); }
const char *F(ErrorString)(int code) {
    return code == 9 ? "Driver Not Loaded" : code == 4 ? "Insufficient Permissions" : code == 15 ? "GPU is lost" : "Unknown Error";
}
int F(DeviceGetCount_v2)(unsigned *count) {
    *count = 0;
    for (int i = 0; i < num_devices; i++) *count += devices[i].parent < 0;
    return 0;
}
int F(DeviceGetHandleByIndex_v2)(unsigned index, void **handle) {
    int at = parents((int)index);
    if (at < 0) return 2;
    *handle = &devices[at];
    return devices[at].code < 100 ? devices[at].code : 0; /* from 100 on only the memory fails */
}
int F(DeviceGetPciInfo_v3)(void *h, pci *info) {
    fake_device *d = h;
    if (!d->bus[0]) return 3;
    snprintf(info->bus_id, sizeof info->bus_id, "%s", d->bus);
    return 0;
}
int F(DeviceGetMemoryInfo)(void *h, memory *m) {
    fake_device *d = h;
    if (d->code >= 100) return d->code;
    if (!d->total) return 3;
    m->total = d->total; m->used = d->used; m->free = d->total - d->used;
    return 0;
}
int F(DeviceGetMinorNumber)(void *h, unsigned *minor) { *minor = ((fake_device *)h)->minor; return 0; }
int F(DeviceGetName)(void *h, char *text, unsigned size) { snprintf(text, size, "%s", ((fake_device *)h)->name); return 0; }
int F(DeviceGetUUID)(void *h, char *text, unsigned size) { snprintf(text, size, "%s", ((fake_device *)h)->uuid); return 0; }
int F(DeviceGetMaxMigDeviceCount)(void *h, unsigned *count) { (void)h; *count = 7; return 0; }
int F(DeviceGetMigDeviceHandleByIndex)(void *h, unsigned place, void **mig) {
    for (int i = 0; i < num_devices; i++)
        if (devices[i].parent >= 0 && &devices[devices[i].parent] == h && devices[i].index == place) {
            *mig = &devices[i];
            return 0;
        }
    return 6;
}
int F(DeviceGetGpuInstanceId)(void *h, unsigned *id) { *id = (unsigned)((fake_device *)h)->instance; return 0; }
