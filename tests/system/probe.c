/*
 * What the executor's tests run as a plugin. Usage: probe WORD [ARGUMENT]
 *
 *   listen          listen on /run/docker/plugins/p.sock until TERM, then exit with 0
 *   late MS         the same, but MS milliseconds pass between bind and listen
 *   stubborn        the same, but ignore TERM
 *   family          the same, with two children that ignore TERM and have left the session
 *   exit CODE       print a line to stdout and one to stderr, exit with CODE
 *   mute            live without a socket
 *   count N         listen, and print N numbered lines when SIGUSR1 comes
 *   flood           listen and print without end
 *   mount PATH      mount a memory disk on PATH, made if missing, then listen
 *   eat             touch ever more memory
 *   feed            have a child do that, print how it ended, then listen
 *   fork N          start up to N children that do nothing, print how many there are, then listen
 *   try PATH        print whether directories can be made at PATH and beside the socket, then listen
 *   show            print capabilities, words, variables, devices; exit with 0
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static volatile sig_atomic_t stop, usr1;

static void on_term(int number) { (void)number; stop = 1; }
static void on_usr1(int number) { (void)number; usr1++; }

static void serve(int late_ms) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/docker/plugins/p.sock"};
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (struct sockaddr *)&address, sizeof address)) { perror("bind"); exit(90); }
    usleep(late_ms * 1000);
    if (listen(fd, 8)) { perror("listen"); exit(91); }
}

static void show(int argc, char **argv) {
    char line[512];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, "Cap", 3) || !strncmp(line, "Uid", 3)) fputs(line, stdout);
    for (int i = 0; i < argc; i++) printf("arg %s\n", argv[i]);
    for (char **e = environ; *e; e++) printf("env %s\n", *e);
    printf("cwd %s\n", getcwd(line, sizeof line));
    const char *devices[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/fuse", "/dev/loop-control"};
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        FILE *device = fopen(devices[i], "r");
        printf("device %s %s\n", devices[i], device ? "opens" : strerror(errno));
    }
    const char *paths[] = {"/sub", "/mine", "/empty", "/etc/hosts", "/dev/shm", "/run/docker/plugins"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        struct stat facts;
        DIR *directory = opendir(paths[i]);
        int entries = 0;
        if (directory) while (readdir(directory)) entries++;
        if (stat(paths[i], &facts)) printf("path %s missing\n", paths[i]);
        else if (directory) printf("path %s directory %d\n", paths[i], entries - 2);
        else printf("path %s file %ld\n", paths[i], (long)facts.st_size);
    }
}

static void eat(void) {
    for (;;) {
        char *piece = malloc(1 << 20);
        if (piece) memset(piece, 1, 1 << 20);
        usleep(1000);
    }
}

static void feed(void) {
    int status;
    if (fork() == 0) eat();
    wait(&status);
    printf("child ended by signal %d\n", WTERMSIG(status));
}

static void spawn(int count) {
    int made = 0;
    for (pid_t pid; made < count && (pid = fork()) >= 0; made++)
        if (pid == 0) for (;;) pause();
    printf("children %d\n", made);
}

static void try(const char *path) {
    const char *paths[] = {path, "/run/docker/plugins/mine"};
    for (int i = 0; i < 2; i++) printf("mkdir %s: %s\n", paths[i], mkdir(paths[i], 0755) ? strerror(errno) : "made");
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "", *argument = argc > 2 ? argv[2] : "";
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGTERM, strcmp(word, "stubborn") ? on_term : SIG_IGN);
    signal(SIGUSR1, on_usr1);
    if (!strcmp(word, "exit")) {
        printf("on stdout\n");
        fprintf(stderr, "on stderr \033[31m\n");
        return atoi(argument);
    }
    if (!strcmp(word, "show")) return show(argc, argv), 0;
    if (!strcmp(word, "family"))
        for (int i = 0; i < 2; i++)
            if (fork() == 0) {
                setsid();
                signal(SIGTERM, SIG_IGN);
                for (;;) pause();
            }
    if (!strcmp(word, "mount")) mkdir(argument, 0755);
    if (!strcmp(word, "mount") && mount("probe", argument, "tmpfs", 0, "size=64k")) { perror("mount"); return 92; }
    if (!strcmp(word, "eat")) eat();
    if (!strcmp(word, "feed")) feed();
    if (!strcmp(word, "fork")) spawn(atoi(argument));
    if (!strcmp(word, "try")) try(argument);
    printf("begins\n");
    if (strcmp(word, "mute")) serve(!strcmp(word, "late") ? atoi(argument) : 0);
    while (!strcmp(word, "flood") && !stop) printf("a line of a plugin that has gone mad and will not stop printing\n");
    sigset_t none, both;
    sigemptyset(&none);
    sigemptyset(&both);
    sigaddset(&both, SIGTERM);
    sigaddset(&both, SIGUSR1);
    sigprocmask(SIG_BLOCK, &both, NULL);
    for (int line = 0; !stop; ) {
        if (usr1) {
            usr1 = 0;
            for (int i = 0; i < atoi(argument); i++) printf("line %d\n", line++);
        }
        if (!stop && !usr1) sigsuspend(&none);
    }
    printf("ends\n");
    return 0;
}
