/*
 * The only program of the containers in the engines' tests. Usage: box WORD …
 *
 *   put PATH TEXT   write a file
 *   get PATH        print a file
 *   wait            do nothing until TERM, then exit with 0
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

static int copy(FILE *from, FILE *to) {
    int c;
    while ((c = getc(from)) != EOF) putc(c, to);
    return fflush(to);
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "";
    if (!strcmp(word, "wait")) {
        /* process 1 of a container gets no signal that it does not ask for */
        sigset_t term;
        int number;
        sigemptyset(&term);
        sigaddset(&term, SIGTERM);
        sigprocmask(SIG_BLOCK, &term, NULL);
        return sigwait(&term, &number);
    }
    FILE *file = argc > 2 ? fopen(argv[2], strcmp(word, "put") ? "r" : "w") : NULL;
    if (!file) {
        perror(argc > 2 ? argv[2] : "usage: box put|get|wait [PATH] [TEXT]");
        return 1;
    }
    if (strcmp(word, "put")) return copy(file, stdout);
    fputs(argc > 3 ? argv[3] : "", file);
    return fclose(file);
}
