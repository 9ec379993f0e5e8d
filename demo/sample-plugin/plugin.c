/*
 * A small volume plugin, for demonstrations and tests: one static program, one thread, one connection at a time.
 *
 * It speaks the volume plugin protocol (https://docs.docker.com/engine/extend/plugins_volume/) over HTTP/1.1 on a
 * unix socket. A volume is a folder below STATE when that is a mount (the plugin's propagatedMount, which the host
 * sees), else below /data. While a volume is mounted a memory disk lies on its folder, so that its contents
 * reach the host only by mount propagation; without CAP_SYS_ADMIN the bare folder is served, and a line says so.
 *
 * Usage: sample-volume-plugin [/path/of/socket] [word…]      the words are printed at the start and mean nothing
 * Environment:
 *   VERSION  shown in the log and in the status of each volume
 *   STATE    where propagatedMount is, /mnt/state where it is empty
 *   DEBUG    anything but empty and 0 logs request bodies
 *   FAULT    exit                  say so on stderr and exit with 3 at once
 *            hang                  work, but ignore SIGTERM
 *            nosocket              live, but never make the socket
 *            crash-after-connect   exit with 4 at the first connection
 *            slow:MS               make the socket MS milliseconds late
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_VOLUMES = 128,
    MAX_NAME = 64,
    MAX_PATH = 128,
    MAX_REQUEST = 64 * 1024, /* head and body together */
    MAX_DEPTH = 32,          /* of nested JSON in a request */
    CLIENT_MS = 5000,        /* a client may be silent for as long */
};

struct volume {
    char name[MAX_NAME + 1];
    unsigned users; /* Mount calls without their Unmount */
};

struct text { /* an answer as it grows; what does not fit sets `cut` */
    char bytes[64 * 1024];
    size_t length;
    bool cut;
};

static struct volume volumes[MAX_VOLUMES];
static size_t volume_count;
static const char *base = "/data";
static const char *version = "";
static bool debug, ignore_term, crash_on_connect;
static volatile sig_atomic_t stopping;
static sigset_t unblocked; /* the mask during waits: signals arrive there and nowhere else */

static void on_signal(int number) {
    (void)number;
    stopping = 1;
}

static bool must_stop(void) { return stopping && !ignore_term; }

static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

/* Wait until `fd` (or nothing, with -1) is ready. False: time is up, or we were told to stop. */
static bool wait_for(int fd, short what, int milliseconds) {
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    struct pollfd watched = {.fd = fd, .events = what};
    for (;;) {
        int ready = ppoll(&watched, 1, milliseconds < 0 ? NULL : &left, &unblocked);
        if (ready >= 0) return ready > 0;
        if (errno != EINTR || must_stop()) return false;
    }
}

/* ---- text and JSON ------------------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void add(struct text *to, const char *format, ...) {
    size_t space = sizeof to->bytes - to->length;
    va_list values;
    va_start(values, format);
    int wanted = vsnprintf(to->bytes + to->length, space, format, values);
    va_end(values);
    if (wanted < 0 || (size_t)wanted >= space)
        to->cut = true;
    else
        to->length += (size_t)wanted;
}

static void add_string(struct text *to, const char *value) {
    add(to, "\"");
    for (; *value; value++) {
        unsigned char c = (unsigned char)*value;
        if (c == '"' || c == '\\')
            add(to, "\\%c", c);
        else if (c < 0x20)
            add(to, "\\u%04x", c);
        else
            add(to, "%c", c);
    }
    add(to, "\"");
}

struct cursor {
    const char *at, *end;
};

static void skip_space(struct cursor *in) {
    while (in->at < in->end && strchr(" \t\r\n", *in->at) && *in->at) in->at++;
}

static bool take(struct cursor *in, char c) {
    skip_space(in);
    if (in->at == in->end || *in->at != c) return false;
    in->at++;
    return true;
}

/* Read a string and keep its bytes between the quotes as they stand: an escape makes no valid key or name here. */
static bool read_string(struct cursor *in, const char **start, size_t *length) {
    if (!take(in, '"')) return false;
    *start = in->at;
    for (; in->at < in->end; in->at++) {
        if ((unsigned char)*in->at < 0x20) return false;
        if (*in->at == '"') {
            *length = (size_t)(in->at++ - *start);
            return true;
        }
        if (*in->at == '\\' && ++in->at == in->end) return false;
    }
    return false;
}

static bool skip_value(struct cursor *in, int depth) {
    const char *start;
    size_t length;
    if (depth > MAX_DEPTH) return false;
    bool object = take(in, '{');
    if (object || take(in, '[')) {
        char closing = object ? '}' : ']';
        if (take(in, closing)) return true;
        do {
            if (object && !(read_string(in, &start, &length) && take(in, ':'))) return false;
            if (!skip_value(in, depth + 1)) return false;
        } while (take(in, ','));
        return take(in, closing);
    }
    if (in->at < in->end && *in->at == '"') return read_string(in, &start, &length);
    for (start = in->at; in->at < in->end && (isalnum((unsigned char)*in->at) || strchr("+-.", *in->at)); in->at++)
        if (!*in->at) return false;
    return in->at > start;
}

/* A name becomes a folder's name: letters, digits, `_`, `.` and `-`, the first one a letter or a digit. */
static bool valid_name(const char *name, size_t length) {
    if (length == 0 || length > MAX_NAME || !isalnum((unsigned char)name[0])) return false;
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)name[i]) && (!name[i] || !strchr("_.-", name[i]))) return false;
    return true;
}

/* Find "Name" in a request's JSON object. False: the JSON is bad, or has no valid name. */
static bool read_name(struct cursor in, char name[MAX_NAME + 1]) {
    bool found = false;
    if (!take(&in, '{')) return false;
    do {
        const char *key, *value;
        size_t key_length, length;
        if (!read_string(&in, &key, &key_length) || !take(&in, ':')) return false;
        skip_space(&in);
        if (key_length != 4 || memcmp(key, "Name", 4) != 0) {
            if (!skip_value(&in, 0)) return false;
        } else {
            if (!read_string(&in, &value, &length) || !valid_name(value, length)) return false;
            memcpy(name, value, length);
            name[length] = '\0';
            found = true;
        }
    } while (take(&in, ','));
    if (!take(&in, '}')) return false;
    skip_space(&in);
    return found && in.at == in.end;
}

/* ---- volumes ------------------------------------------------------------------------------------------------- */

static void path_of(const char *name, char path[MAX_PATH]) { snprintf(path, MAX_PATH, "%s/%s", base, name); }

/* True when a mount of ours lies on the folder: it is then on another device than its parent. */
static bool is_mounted(const char *path) {
    struct stat folder, parent;
    return stat(path, &folder) == 0 && stat(base, &parent) == 0 && folder.st_dev != parent.st_dev;
}

static struct volume *find(const char *name) {
    for (size_t i = 0; i < volume_count; i++)
        if (strcmp(volumes[i].name, name) == 0) return &volumes[i];
    return NULL;
}

static struct volume *remember(const char *name) {
    char path[MAX_PATH];
    if (volume_count == MAX_VOLUMES) return NULL;
    struct volume *new = &volumes[volume_count++];
    snprintf(new->name, sizeof new->name, "%s", name);
    path_of(name, path);
    new->users = is_mounted(path) ? 1 : 0;
    return new;
}

/* Is PATH a mount point? The fifth word of each line of mountinfo is one. */
static bool in_mountinfo(const char *path) {
    FILE *file = fopen("/proc/self/mountinfo", "re");
    char *line = NULL, point[MAX_PATH];
    size_t room = 0;
    bool found = false;
    while (file && !found && getline(&line, &room, file) > 0)
        found = sscanf(line, "%*s %*s %*s %*s %127s", point) == 1 && strcmp(point, path) == 0;
    free(line);
    if (file) fclose(file);
    return found;
}

/* Choose where volumes live and take up those of an earlier run. */
static bool open_volumes(void) {
    const char *state = *variable("STATE") ? variable("STATE") : "/mnt/state";
    if (in_mountinfo(state)) base = state;
    if (mkdir(base, 0755) != 0 && errno != EEXIST) {
        fprintf(stderr, "cannot make %s: %s\n", base, strerror(errno));
        return false;
    }
    DIR *folder = opendir(base);
    if (!folder) {
        fprintf(stderr, "cannot read %s: %s\n", base, strerror(errno));
        return false;
    }
    for (struct dirent *entry; (entry = readdir(folder));)
        if (valid_name(entry->d_name, strlen(entry->d_name)) && !remember(entry->d_name))
            fprintf(stderr, "more than %d volumes, %s is left out\n", MAX_VOLUMES, entry->d_name);
    closedir(folder);
    return true;
}

/* Fill `answer` with {"Err":"what: reason"} (and log it), return the status that goes with it. */
static int refuse(struct text *answer, const char *what, const char *name, const char *reason) {
    fprintf(stderr, "%s %s: %s\n", what, name, reason);
    char message[256];
    snprintf(message, sizeof message, "%s %s: %s", what, name, reason);
    answer->length = 0;
    add(answer, "{\"Err\":");
    add_string(answer, message);
    add(answer, "}");
    return 500;
}

static void add_volume(struct text *answer, const struct volume *volume) {
    char path[MAX_PATH];
    path_of(volume->name, path);
    add(answer, "{\"Name\":\"%s\",\"Mountpoint\":\"%s\",\"Status\":{\"Mounts\":%u,\"Version\":", volume->name, path,
        volume->users);
    add_string(answer, version);
    add(answer, "}}");
}

static int create_volume(struct text *answer, const char *name) {
    char path[MAX_PATH];
    path_of(name, path);
    if (!find(name)) {
        if (volume_count == MAX_VOLUMES) return refuse(answer, "cannot create", name, "too many volumes");
        if (mkdir(path, 0755) != 0 && errno != EEXIST) return refuse(answer, "cannot create", name, strerror(errno));
        remember(name);
    }
    add(answer, "{\"Err\":\"\"}");
    return 200;
}

/* Delete the files of a volume; folders in it are refused by unlink, and the volume then stays. */
static bool empty_and_remove(const char *path) {
    DIR *folder = opendir(path);
    if (!folder) return errno == ENOENT;
    for (struct dirent *entry; (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            if (unlinkat(dirfd(folder), entry->d_name, 0) != 0) break;
    closedir(folder);
    return rmdir(path) == 0;
}

static int remove_volume(struct text *answer, struct volume *volume, const char *path) {
    if (volume->users) return refuse(answer, "cannot remove", volume->name, "it is mounted");
    if (!empty_and_remove(path)) return refuse(answer, "cannot remove", volume->name, strerror(errno));
    *volume = volumes[--volume_count];
    add(answer, "{\"Err\":\"\"}");
    return 200;
}

static int mount_volume(struct text *answer, struct volume *volume, const char *path) {
    if (volume->users == 0 && mount("sample", path, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=0755") != 0) {
        if (errno != EPERM) return refuse(answer, "cannot mount", volume->name, strerror(errno));
        fprintf(stderr, "no CAP_SYS_ADMIN: %s is served as a bare folder\n", path);
    }
    volume->users++;
    add(answer, "{\"Mountpoint\":\"%s\",\"Err\":\"\"}", path);
    return 200;
}

static int unmount_volume(struct text *answer, struct volume *volume, const char *path) {
    if (volume->users == 0) return refuse(answer, "cannot unmount", volume->name, "it is not mounted");
    if (volume->users == 1 && is_mounted(path) && umount2(path, UMOUNT_NOFOLLOW) != 0)
        return refuse(answer, "cannot unmount", volume->name, strerror(errno));
    volume->users--;
    add(answer, "{\"Err\":\"\"}");
    return 200;
}

static int list(struct text *answer) {
    add(answer, "{\"Volumes\":[");
    for (size_t i = 0; i < volume_count; i++) {
        add(answer, "%s", i ? "," : "");
        add_volume(answer, &volumes[i]);
    }
    add(answer, "],\"Err\":\"\"}");
    return 200;
}

/* Answer one call, given its path and body; return the HTTP status. */
static int answer_call(struct text *answer, const char *call, struct cursor body) {
    static const char prefix[] = "/VolumeDriver.";
    char name[MAX_NAME + 1], path[MAX_PATH];
    if (strcmp(call, "/Plugin.Activate") == 0) {
        add(answer, "{\"Implements\":[\"VolumeDriver\"]}");
        return 200;
    }
    if (strncmp(call, prefix, sizeof prefix - 1) != 0) {
        add(answer, "{\"Err\":\"no such call\"}");
        return 404;
    }
    call += sizeof prefix - 1;
    if (strcmp(call, "Capabilities") == 0) {
        add(answer, "{\"Capabilities\":{\"Scope\":\"local\"}}");
        return 200;
    }
    if (strcmp(call, "List") == 0) return list(answer);
    static const char *const named[] = {"Create", "Remove", "Mount", "Unmount", "Path", "Get"};
    bool known = false;
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) known = known || strcmp(call, named[i]) == 0;
    if (!known) {
        add(answer, "{\"Err\":\"no such call\"}");
        return 404;
    }
    if (!read_name(body, name)) {
        refuse(answer, call, "refused", "the body has no valid volume name");
        return 400;
    }
    if (strcmp(call, "Create") == 0) return create_volume(answer, name);
    struct volume *volume = find(name);
    if (!volume) return refuse(answer, call, name, "no such volume");
    path_of(name, path);
    if (strcmp(call, "Remove") == 0) return remove_volume(answer, volume, path);
    if (strcmp(call, "Mount") == 0) return mount_volume(answer, volume, path);
    if (strcmp(call, "Unmount") == 0) return unmount_volume(answer, volume, path);
    if (strcmp(call, "Path") == 0) {
        add(answer, "{\"Mountpoint\":\"%s\",\"Err\":\"\"}", volume->users ? path : "");
        return 200;
    }
    add(answer, "{\"Volume\":");
    add_volume(answer, volume);
    add(answer, ",\"Err\":\"\"}");
    return 200;
}

/* ---- HTTP ---------------------------------------------------------------------------------------------------- */

static bool send_all(int client, const char *bytes, size_t length) {
    while (length) {
        if (!wait_for(client, POLLOUT, CLIENT_MS)) return false;
        ssize_t sent = send(client, bytes, length, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0 && errno != EAGAIN) return false;
        if (sent > 0) {
            bytes += sent;
            length -= (size_t)sent;
        }
    }
    return true;
}

static void respond(int client, int status, const struct text *answer) {
    const char *reason = status == 200   ? "OK"
                         : status == 404 ? "Not Found"
                         : status == 500 ? "Internal Server Error"
                                         : "Bad Request";
    char head[256];
    int length = snprintf(head, sizeof head,
                          "HTTP/1.1 %d %s\r\nContent-Type: application/vnd.docker.plugins.v1.1+json\r\n"
                          "Content-Length: %zu\r\nConnection: close\r\n\r\n",
                          status, reason, answer->length);
    if (!send_all(client, head, (size_t)length) || !send_all(client, answer->bytes, answer->length))
        fprintf(stderr, "the client left before its answer\n");
}

/* Find the value of Content-Length in a head that ends with an empty line; -1: none or bad, and 0 without the header. */
static long body_length(const char *head) {
    long length = 0;
    for (const char *line = strstr(head, "\r\n"); line && line[2] != '\r'; line = strstr(line + 2, "\r\n")) {
        if (strncasecmp(line + 2, "Transfer-Encoding:", 18) == 0) return -1; /* chunks are not understood here */
        if (strncasecmp(line + 2, "Content-Length:", 15) != 0) continue;
        const char *digits = line + 17 + strspn(line + 17, " \t");
        if (!isdigit((unsigned char)*digits)) return -1;
        char *rest;
        errno = 0;
        length = strtol(digits, &rest, 10);
        if (errno || length > MAX_REQUEST || strncmp(rest + strspn(rest, " \t"), "\r\n", 2) != 0) return -1;
    }
    return length;
}

/* Read one request into `buffer`. Return its body, or NULL when there is none to answer. */
static char *read_request(int client, char buffer[MAX_REQUEST + 1], size_t *length) {
    size_t filled = 0;
    char *body = NULL;
    for (;;) {
        if (!wait_for(client, POLLIN, CLIENT_MS)) return NULL;
        ssize_t got = recv(client, buffer + filled, MAX_REQUEST - filled, 0);
        if (got <= 0) return NULL; /* a probe that only connects ends here */
        filled += (size_t)got;
        buffer[filled] = '\0';
        if (!body) {
            char *end = strstr(buffer, "\r\n\r\n");
            if (end) {
                long wanted = body_length(buffer);
                body = end + 4;
                if (wanted < 0 || (size_t)(body - buffer) + (size_t)wanted > MAX_REQUEST) return NULL;
                *length = (size_t)wanted;
            }
        }
        if (body && filled - (size_t)(body - buffer) >= *length) return body;
        if (filled == MAX_REQUEST) return NULL;
    }
}

static void serve_client(int client) {
    static char buffer[MAX_REQUEST + 1];
    static struct text answer;
    char call[64];
    size_t length = 0;
    answer.length = 0;
    answer.cut = false;
    buffer[0] = '\0';
    char *body = read_request(client, buffer, &length);
    if (!body && !buffer[0]) return;
    if (!body || sscanf(buffer, "POST %63[^ \r\n] HTTP/1.", call) != 1) {
        fprintf(stderr, "a request that is no POST with a length of at most %d bytes was refused\n", MAX_REQUEST);
        add(&answer, "{\"Err\":\"bad request\"}");
        respond(client, 400, &answer);
        return;
    }
    int status = answer_call(&answer, call, (struct cursor){body, body + length});
    if (answer.cut) status = refuse(&answer, "cannot answer", call, "the answer is too long");
    if (strcmp(call, "/Plugin.Activate") == 0)
        printf("%s -> %d (version %s, debug %d)\n", call, status, version, debug);
    else if (debug)
        printf("%s %.*s -> %d\n", call, (int)length, body, status);
    else
        printf("%s -> %d\n", call, status);
    respond(client, status, &answer);
}

static int listen_on(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        fprintf(stderr, "the socket's path is too long: %s\n", path);
        return -1;
    }
    strcpy(address.sun_path, path);
    unlink(path); /* one left by a run that was killed */
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 16) != 0) {
        fprintf(stderr, "cannot listen on %s: %s\n", path, strerror(errno));
        return -1;
    }
    return listener;
}

/* Behave as FAULT says before there is a socket. False: exit with *code. */
static bool survive(const char *fault, int *code) {
    if (strcmp(fault, "exit") == 0) {
        fprintf(stderr, "FAULT=exit: giving up at once\n");
        *code = 3;
        return false;
    }
    ignore_term = strcmp(fault, "hang") == 0;
    crash_on_connect = strcmp(fault, "crash-after-connect") == 0;
    if (strcmp(fault, "nosocket") == 0) wait_for(-1, 0, -1);
    if (strncmp(fault, "slow:", 5) == 0) wait_for(-1, 0, atoi(fault + 5));
    return !must_stop();
}

int main(int argc, char **argv) {
    const char *path = argc > 1 && argv[1][0] == '/' ? argv[1] : "/run/docker/plugins/sample.sock";
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGINT);
    sigprocmask(SIG_BLOCK, &ours, &unblocked);
    sigdelset(&unblocked, SIGTERM);
    sigdelset(&unblocked, SIGINT);
    sigaction(SIGTERM, &action, NULL); /* as process 1 of its namespace it would otherwise not notice */
    sigaction(SIGINT, &action, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);

    version = variable("VERSION");
    debug = *variable("DEBUG") && strcmp(variable("DEBUG"), "0") != 0;
    printf("sample volume plugin, version %s", version);
    for (int i = 1; i < argc; i++) printf(" [%s]", argv[i]);
    printf("\n");

    int code = 0;
    if (!survive(variable("FAULT"), &code)) return code;
    int listener = open_volumes() ? listen_on(path) : -1;
    if (listener < 0) return 1;
    while (!must_stop()) {
        if (!wait_for(listener, POLLIN, -1)) continue;
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) continue;
        if (crash_on_connect) {
            fprintf(stderr, "FAULT=crash-after-connect: giving up\n");
            return 4;
        }
        serve_client(client);
        close(client);
    }
    unlink(path);
    printf("stopped\n");
    return 0;
}
