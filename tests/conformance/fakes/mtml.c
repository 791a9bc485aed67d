/* Moore Threads' mtml: the functions that Polypod calls. A memory is asked for through a handle of its own. */
#include "replay.h"
#include <stdint.h>
typedef struct { char address[32]; unsigned segment, bus, device, id, subsystem, width; float max_speed, speed; unsigned w[4]; int reserved[6]; } pci_info;
static int library;
int mtmlLibraryInit(void **handle) { *handle = &library; return fake_init(); }
int mtmlLibraryCountDevice(void *handle, unsigned *count) { if (handle != &library) return 1; *count = (unsigned)num_devices; return 0; }
int mtmlLibraryInitDeviceByIndex(void *handle, unsigned i, void **device) {
    if (handle != &library) return 1;
    *device = &devices[i];
    return devices[i].code;
}
int mtmlDeviceGetPciInfo(void *d, pci_info *info) { snprintf(info->address, sizeof info->address, "%s", ((fake_device *)d)->bus); return 0; }
int mtmlDeviceGetName(void *d, char *text, unsigned size) { snprintf(text, size, "%s", ((fake_device *)d)->name); return 0; }
int mtmlDeviceGetUUID(void *d, char *text, unsigned size) { snprintf(text, size, "%s", ((fake_device *)d)->uuid); return 0; }
int mtmlDeviceInitMemory(void *d, void **memory) { *memory = &((fake_device *)d)->total; return 0; }
int mtmlMemoryGetTotal(void *m, uint64_t *total) { *total = ((unsigned long long *)m)[0]; return 0; }
int mtmlMemoryGetUsed(void *m, uint64_t *used) { *used = ((unsigned long long *)m)[1]; return 0; }
