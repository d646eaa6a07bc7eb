/* Preloaded into the daemon in the guest, and by it into mkfs: crashes a volume at its Nth action.
 *
 * The daemon announces each action to systemd before it does it ("STATUS=…", "READY=1", "STOPPING=1"); its exit is the
 * last one. What has no actions of that kind are the LUKS format and mkfs: their Nth fsync counts, once it has brought to the
 * disk what was written.
 *
 * /run/secretfs/crash/VOLUME holds the order, "kill KIND N" or "hang KIND N"; KIND is "step", "luks" or "mkfs". In its place
 * comes what was about to be done, so that the daemon which systemd starts next lives. Then the daemon is killed, or
 * stands still until the rig takes the machine's power away. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LIBRARY "/usr/local/lib/rig-crash.so"
#define ORDERS "/run/secretfs/crash/"

static const char *volume;
static int in_mkfs, in_format;
static int passed;

/* The daemon's last argument is its volume's name; mkfs is told. */
__attribute__((constructor)) static void begin(int argc, char **argv)
{
    volume = getenv("RIG_VOLUME");
    in_mkfs = volume != NULL;
    if (!in_mkfs)
        volume = argv[argc - 1];
}

/* An order, and not the action that came in its place. */
static int is_verb(const char *word)
{
    return strcmp(word, "kill") == 0 || strcmp(word, "hang") == 0;
}

static void crash_if_due(const char *kind, const char *text, size_t length)
{
    char path[256], verb[8], ordered[8];
    int due;
    FILE *order;

    snprintf(path, sizeof path, ORDERS "%s", volume);
    order = fopen(path, "r+e");
    if (!order)
        return;
    if (fscanf(order, "%7s %7s %d", verb, ordered, &due) == 3 && is_verb(verb) && strcmp(ordered, kind) == 0
        && ++passed == due) {
        order = freopen(path, "we", order);
        fprintf(order, "%.*s\n", (int)length, text);
        fflush(order);
        /* systemd made the daemon the leader of its process group, so mkfs finds it, too; then it ends the rest. */
        if (strcmp(verb, "kill") == 0)
            kill(getpgrp(), SIGKILL);
        for (;;)
            pause();
    }
    fclose(order);
}

static int begins(const char *text, size_t length, const char *with)
{
    return length >= strlen(with) && memcmp(text, with, strlen(with)) == 0;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");

    if (message->msg_iovlen) {
        const char *text = message->msg_iov[0].iov_base;
        size_t length = message->msg_iov[0].iov_len;

        /* What may pass, such as a metadata service that is slow here, is tried again from the first action on. */
        if (begins(text, length, "STATUS=Waiting: "))
            passed = 0;
        else if (begins(text, length, "STATUS=") || begins(text, length, "READY=1") || begins(text, length, "STOPPING=1"))
            crash_if_due("step", text, length);
        if (begins(text, length, "STATUS="))
            in_format = begins(text, length, "STATUS=Formatting ");
    }
    return real(fd, message, flags);
}

__attribute__((destructor)) static void end(void)
{
    if (!in_mkfs)
        crash_if_due("step", "exit", 4);
}

int fsync(int fd)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    int result = real(fd);
    char text[64];

    if (in_mkfs)
        crash_if_due("mkfs", text, snprintf(text, sizeof text, "go on with mkfs after its fsync %d", passed + 1));
    else if (in_format)
        crash_if_due("luks", text, snprintf(text, sizeof text, "go on with the LUKS format after its fsync %d", passed + 1));
    return result;
}

/* Tools get a clean environment; mkfs gets this library all the same. */
int execvp(const char *file, char *const argv[])
{
    int (*real)(const char *, char *const[]) = dlsym(RTLD_NEXT, "execvp");

    if (strncmp(file, "mkfs.", 5) == 0) {
        setenv("LD_PRELOAD", LIBRARY, 1);
        setenv("RIG_VOLUME", volume, 1);
    }
    return real(file, argv);
}
