/*
 * Plugins that misbehave, for the tests of supervision. Usage: unruly WORD [ARGUMENT [ARGUMENT]]
 *
 * Each listens on /run/docker/plugins/p.sock and answers every request with 404, as upstream's own test plugins do,
 * until TERM comes:
 *
 *   well            does no more than that
 *   after MS CODE   exits with CODE after MS milliseconds
 *   requests N      dies by ABRT at its Nth request
 *   deaf            answers until USR1 comes, and then accepts no more
 *   lonely          deletes its socket when USR1 comes, and listens anew when it comes again
 *   flood           prints without end, from a second process
 */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static const struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/docker/plugins/p.sock"};

static int listener(void) {
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (const struct sockaddr *)&address, sizeof address) || listen(fd, 64)) { perror("listen"); exit(90); }
    return fd;
}

static long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "";
    int number = argc > 2 ? atoi(argv[2]) : 0, requests = 0;
    sigset_t ours;
    sigemptyset(&ours);
    sigaddset(&ours, SIGTERM);
    sigaddset(&ours, SIGUSR1);
    sigprocmask(SIG_BLOCK, &ours, NULL);
    int signals = signalfd(-1, &ours, SFD_CLOEXEC), fd = listener();
    printf("begins\n");
    fflush(stdout);
    if (!strcmp(word, "flood") && fork() == 0)
        for (;;) printf("%0127d\n", ++number);
    long end = strcmp(word, "after") ? 0 : now_ms() + number;
    for (;;) {
        struct pollfd both[] = {{.fd = signals, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
        long left = end ? end - now_ms() : -1;
        if (end && left <= 0) {
            fprintf(stderr, "level=error msg=\"had enough\"\n");
            return argc > 3 ? atoi(argv[3]) : 0;
        }
        poll(both, 2, left);
        if (both[0].revents) {
            struct signalfd_siginfo got;
            if (read(signals, &got, sizeof got) == sizeof got && got.ssi_signo == SIGTERM) return 0;
            if (!strcmp(word, "deaf")) { dup(fd); fd = -1; }
            if (!strcmp(word, "lonely")) {
                if (fd >= 0) { close(fd); unlink(address.sun_path); fd = -1; }
                else fd = listener();
            }
        } else if (both[1].revents) {
            char request[4096];
            int client = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
            if (client < 0) continue;
            if (read(client, request, sizeof request) > 0) {
                const char *answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
                if (!strcmp(word, "requests") && ++requests == number) abort();
                if (write(client, answer, strlen(answer)) < 0) perror("write");
            }
            close(client);
        }
    }
}
