/* What the fake libraries share: devices read from the file that POLYPOD_FAKE_LIBRARY names, one a line of "key=value" fields
 * separated by tabs. A line that begins with "init=" makes initialisation return that code; "crash" and "hang" do what they say. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
    char name[96], uuid[96], bus[32];
    unsigned long long total, used;
    unsigned index, minor, domain, busid, device, function;
    int card, chip, code, parent, instance;
} fake_device;

static fake_device devices[64];
static int num_devices;
static int init_code;

static void fake_field(fake_device *d, const char *key, const char *value) {
    if (!strcmp(key, "name")) snprintf(d->name, sizeof d->name, "%s", value);
    else if (!strcmp(key, "uuid")) snprintf(d->uuid, sizeof d->uuid, "%s", value);
    else if (!strcmp(key, "bus")) {
        snprintf(d->bus, sizeof d->bus, "%s", value);
        sscanf(value, "%x:%x:%x.%x", &d->domain, &d->busid, &d->device, &d->function);
    }
    else if (!strcmp(key, "total")) d->total = strtoull(value, NULL, 10);
    else if (!strcmp(key, "used")) d->used = strtoull(value, NULL, 10);
    else if (!strcmp(key, "index")) d->index = (unsigned)atoi(value);
    else if (!strcmp(key, "minor")) d->minor = (unsigned)atoi(value);
    else if (!strcmp(key, "card")) d->card = atoi(value);
    else if (!strcmp(key, "chip")) d->chip = atoi(value);
    else if (!strcmp(key, "code")) d->code = atoi(value);
    else if (!strcmp(key, "parent")) d->parent = atoi(value);
    else if (!strcmp(key, "instance")) d->instance = atoi(value);
    else { fprintf(stderr, "no such field: %s\n", key); exit(3); }
}

static int fake_init(void) {
    char line[1024];
    FILE *file = fopen(getenv("POLYPOD_FAKE_LIBRARY"), "r");
    if (!file) exit(3);
    num_devices = 0;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        if (!strncmp(line, "init=", 5)) { init_code = atoi(line + 5); continue; }
        if (!strcmp(line, "crash")) abort();
        if (!strcmp(line, "hang")) { for (;;) pause(); }
        if (!line[0]) continue;
        fake_device *d = &devices[num_devices++];
        d->parent = -1;
        for (char *field = strtok(line, "\t"); field; field = strtok(NULL, "\t")) {
            char *value = strchr(field, '=');
            if (!value) exit(3);
            *value = 0;
            fake_field(d, field, value + 1);
        }
    }
    fclose(file);
    return init_code;
}
