/* Cambricon's cndev: the functions that Polypod calls. Structs of another version are refused, as the library does. */
#include "replay.h"
#include <stdint.h>
typedef struct { int32_t version; uint32_t number; } card_info;
typedef struct { int32_t version; char uuid[37]; uint64_t ncs; } uuid_info;
typedef struct { int64_t total, used, reserved, vtotal, vused; uint64_t global, rest[16]; } memory_info;
typedef struct { uint32_t subsystem, id; uint16_t vendor, subvendor; uint32_t domain, bus, device, function; uint16_t module, slot; uint32_t rest[8]; } pcie_info;
int cndevInit(int reserved) { (void)reserved; return fake_init(); }
const char *cndevGetErrorString(int code) { return code == 3 ? "No driver loaded" : "unknown"; }
int cndevGetDeviceCount(card_info *info) { if (info->version != 6) return 5; info->number = (uint32_t)num_devices; return 0; }
int cndevGetDeviceHandleByIndex(int i, int32_t *handle) { *handle = 100 + i; return devices[i].code; }
const char *cndevGetCardNameStringByDevId(int32_t h) { return devices[h - 100].name; }
int cndevGetUUID(uuid_info *info, int32_t h) {
    if (info->version != 6) return 5;
    snprintf(info->uuid, sizeof info->uuid, "%s", devices[h - 100].uuid);
    return 0;
}
int cndevGetMemoryUsageV2(memory_info *info, int32_t h) {
    info->total = (int64_t)(devices[h - 100].total >> 20); info->used = (int64_t)(devices[h - 100].used >> 20);
    return 0;
}
int cndevGetPCIeInfoV2(pcie_info *info, int32_t h) {
    fake_device *d = &devices[h - 100];
    info->domain = d->domain; info->bus = d->busid; info->device = d->device; info->function = d->function;
    return 0;
}
