/* MetaX's mxsml: the functions that Polypod calls. */
#include "replay.h"
typedef struct { unsigned id, type; char bus[32]; unsigned gpu, node; char uuid[96]; unsigned brand, mode; char name[32]; } device_info;
typedef struct { long window_total, window_used, total, used, xtt_total, xtt_used; } memory_info;
int mxSmlInit(void) { return fake_init(); }
const char *mxSmlGetErrorString(int code) { return code == 4 ? "MetaX driver is not loaded" : "unknown"; }
int mxSmlGetDeviceCount(void) { return num_devices; }
int mxSmlGetDeviceInfo(unsigned i, device_info *info) {
    if (devices[i].code) return devices[i].code;
    snprintf(info->bus, sizeof info->bus, "%s", devices[i].bus);
    snprintf(info->uuid, sizeof info->uuid, "%s", devices[i].uuid);
    snprintf(info->name, sizeof info->name, "%s", devices[i].name);
    return 0;
}
int mxSmlGetMemoryInfo(unsigned i, memory_info *info) {
    info->window_total = 1; info->window_used = 1;
    info->total = (long)(devices[i].total >> 10); info->used = (long)(devices[i].used >> 10);
    return 0;
}
