/* Huawei's DCMI: the functions that Polypod calls. */
#include "replay.h"
typedef struct { char type[32], name[32], version[32]; unsigned cores; } chip_info;
typedef struct { unsigned vendor, subvendor, device_id, subdevice; int domain; unsigned bus, device, function; char reserve[32]; } pcie_info;
typedef struct { unsigned long long size; unsigned freq; unsigned long long usage; int temp; unsigned rate; } hbm_info;
typedef struct { unsigned long long size, available; unsigned freq; unsigned long page, pages, free_pages; unsigned percent; char reserve[60]; } memory_info;

static fake_device *at(int card, int chip) {
    for (int i = 0; i < num_devices; i++)
        if (devices[i].card == card && devices[i].chip == chip) return &devices[i];
    return NULL;
}
int dcmi_init(void) { return fake_init(); }
int dcmi_get_card_list(int *num, int *list, int size) {
    *num = 0;
    for (int i = 0; i < num_devices; i++) {
        int seen = 0;
        for (int j = 0; j < *num; j++) seen |= list[j] == devices[i].card;
        if (!seen && *num < size) list[(*num)++] = devices[i].card;
    }
    return 0;
}
int dcmi_get_device_num_in_card(int card, int *num) {
    *num = 0;
    for (int i = 0; i < num_devices; i++) *num += devices[i].card == card;
    return 0;
}
int dcmi_get_device_type(int card, int chip, unsigned *type) { (void)card; (void)chip; *type = 0; return 0; }
int dcmi_get_device_chip_info(int card, int chip, chip_info *info) {
    snprintf(info->name, sizeof info->name, "%s", at(card, chip)->name);
    return 0;
}
int dcmi_get_device_pcie_info_v2(int card, int chip, pcie_info *info) {
    fake_device *d = at(card, chip);
    info->domain = (int)d->domain; info->bus = d->busid; info->device = d->device; info->function = d->function;
    return 0;
}
int dcmi_get_device_hbm_info(int card, int chip, hbm_info *info) {
    fake_device *d = at(card, chip);
    if (strstr(d->name, "310")) return -8255;
    info->size = d->total >> 20; info->usage = d->used >> 20;
    return 0;
}
int dcmi_get_device_memory_info_v3(int card, int chip, memory_info *info) {
    fake_device *d = at(card, chip);
    info->size = d->total >> 20; info->available = (d->total - d->used) >> 20;
    return 0;
}
int dcmi_get_device_logic_id(int *id, int card, int chip) { *id = (int)at(card, chip)->index; return 0; }
int dcmi_get_device_phyid_from_logicid(unsigned logic, unsigned *id) {
    for (int i = 0; i < num_devices; i++)
        if (devices[i].index == logic) { *id = devices[i].minor; return 0; }
    return -8001;
}
int dcmi_get_device_health(int card, int chip, unsigned *health) { *health = (unsigned)at(card, chip)->code; return 0; }
