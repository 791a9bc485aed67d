/* ROCm SMI, of AMD and of Hygon: the functions that Polypod calls. */
#include "replay.h"
#include <stdint.h>
int rsmi_init(uint64_t flags) { (void)flags; return fake_init(); }
int rsmi_num_monitor_devices(uint32_t *num) { *num = (uint32_t)num_devices; return 0; }
int rsmi_dev_name_get(uint32_t i, char *name, size_t size) { snprintf(name, size, "%s", devices[i].name); return 0; }
int rsmi_dev_unique_id_get(uint32_t i, uint64_t *id) {
    if (!devices[i].uuid[0]) return 2;
    *id = strtoull(devices[i].uuid, NULL, 16);
    return 0;
}
int rsmi_dev_pci_id_get(uint32_t i, uint64_t *id) {
    fake_device *d = &devices[i];
    *id = (uint64_t)d->domain << 32 | d->busid << 8 | d->device << 3 | d->function;
    return 0;
}
int rsmi_dev_memory_total_get(uint32_t i, int type, uint64_t *total) { if (type) return 2; *total = devices[i].total; return 0; }
int rsmi_dev_memory_usage_get(uint32_t i, int type, uint64_t *used) { if (type) return 2; *used = devices[i].used; return 0; }
int rsmi_status_string(int code, const char **text) { *text = code == 8 ? "RSMI_STATUS_INIT_ERROR: Driver not initialized" : "unknown"; return 0; }
