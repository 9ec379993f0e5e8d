/*
 * An authorization plugin that does what the target of a request says, so that one serves every test.
 *
 * It listens on /run/docker/plugins/p.sock, answers all but AuthZReq with 404, and allows what names none of these:
 *
 *   authz-deny      not allowed, with a message that has a control character
 *   authz-err       allowed, and an error all the same
 *   authz-garbage   no HTTP
 *   authz-flood     an answer without end
 *   authz-hang      no answer, while others get theirs
 *   authz-die       the plugin ends with 7
 */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char request[1 << 20];

/* Read a request, head and body, as a string. */
static void receive(int fd) {
    size_t have = 0, wanted = 0;
    for (;;) {
        ssize_t got = read(fd, request + have, sizeof request - 1 - have);
        if (got <= 0) break;
        request[have += got] = 0;
        char *body = strstr(request, "\r\n\r\n"), *length = strcasestr(request, "\r\nContent-Length:");
        if (!body) continue;
        if (length) wanted = strtoul(length + 17, NULL, 10);
        if (have >= (size_t)(body + 4 - request) + wanted) break;
    }
    request[have] = 0;
}

static void reply(int fd, const char *status, const char *body) {
    dprintf(fd, "HTTP/1.1 %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", status, strlen(body), body);
}

int main(void) {
    const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/docker/plugins/p.sock"};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGCHLD, SIG_IGN);
    signal(SIGTERM, exit);
    if (bind(fd, (const struct sockaddr *)&address, sizeof address) || listen(fd, 64)) { perror("listen"); return 90; }
    for (;;) {
        int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0) continue;
        receive(client);
        const char *target = strstr(request, "\"RequestUri\":\""), *word = NULL;
        char *end = target ? strchr(target + 14, '"') : NULL;
        if (end) {
            *end = 0;
            word = strstr(target, "authz-");
        }
        if (strncmp(request, "POST /AuthZPlugin.AuthZReq ", 27)) reply(client, "404 Not Found", "");
        else if (!word) reply(client, "200 OK", "{\"Allow\":true}");
        else if (!strncmp(word, "authz-deny", 10)) reply(client, "200 OK", "{\"Allow\":false,\"Msg\":\"not\\u001b you\"}");
        else if (!strncmp(word, "authz-err", 9)) reply(client, "200 OK", "{\"Allow\":true,\"Err\":\"its own trouble\"}");
        else if (!strncmp(word, "authz-garbage", 13)) dprintf(client, "garbage\r\n");
        else if (!strncmp(word, "authz-die", 9)) return 7;
        else if (fork() == 0) {
            close(fd);
            if (!strncmp(word, "authz-hang", 10)) sleep(60);
            dprintf(client, "HTTP/1.1 200 OK\r\n\r\n{\"Allow\":true,\"Msg\":\"");
            while (write(client, request, sizeof request) > 0) {}
            _exit(0);
        }
        close(client);
    }
}
