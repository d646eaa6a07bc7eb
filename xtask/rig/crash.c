/* Preloaded into the daemon in the guest. Every step of a volume is announced with a datagram "STATUS=…" before it runs;
 * this ends the daemon at the Nth, so after the step before it and before the step that it announces.
 *
 * /run/secretfs/crash holds "kill N" or "hang N" and is taken away when its time has come: the daemon that systemd starts
 * next lives. "hang" leaves /run/secretfs/hung for the rig, which then takes the machine's power away. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ORDER "/run/secretfs/crash"
#define HUNG "/run/secretfs/hung"

static int announced;

static void crash_if_due(void)
{
    char verb[8];
    int due;
    FILE *order = fopen(ORDER, "re");

    if (!order)
        return;
    if (fscanf(order, "%7s %d", verb, &due) == 2 && ++announced == due) {
        unlink(ORDER);
        if (strcmp(verb, "hang") == 0) {
            close(open(HUNG, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
            for (;;)
                pause();
        }
        kill(getpid(), SIGKILL);
    }
    fclose(order);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    static ssize_t (*real)(int, const struct msghdr *, int);
    const char *text = message->msg_iovlen ? message->msg_iov[0].iov_base : NULL;

    if (!real)
        real = (ssize_t (*)(int, const struct msghdr *, int))dlsym(RTLD_NEXT, "sendmsg");
    if (text && message->msg_iov[0].iov_len > 7 && memcmp(text, "STATUS=", 7) == 0)
        crash_if_due();
    return real(fd, message, flags);
}
