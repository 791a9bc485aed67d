/* Intel Gaudi's hlml: the functions that Polypod calls. The module id is the field "minor". */
#include "replay.h"
typedef struct { unsigned bus; char address[15]; unsigned device, domain, id; char speed[10], width[10]; } pci_info;
typedef struct { unsigned long long free, total, used; } memory;
int hlml_init(void) { return fake_init(); }
int hlml_device_get_count(unsigned *count) { *count = (unsigned)num_devices; return 0; }
int hlml_device_get_handle_by_index(unsigned i, void **handle) { *handle = &devices[i]; return devices[i].code; }
int hlml_device_get_pci_info(void *h, pci_info *info) { snprintf(info->address, sizeof info->address, "%s", ((fake_device *)h)->bus); return 0; }
int hlml_device_get_memory_info(void *h, memory *m) {
    fake_device *d = h;
    m->total = d->total; m->used = d->used; m->free = d->total - d->used;
    return 0;
}
int hlml_device_get_module_id(void *h, unsigned *id) { *id = ((fake_device *)h)->minor; return 0; }
int hlml_device_get_name(void *h, char *text, unsigned size) { snprintf(text, size, "%s", ((fake_device *)h)->name); return 0; }
int hlml_device_get_uuid(void *h, char *text, unsigned size) { snprintf(text, size, "%s", ((fake_device *)h)->uuid); return 0; }
