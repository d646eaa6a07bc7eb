/* Preloaded into the daemon in the guest. Every step of a volume is announced with a datagram "STATUS=…" before it runs;
 * this ends the daemon at the Nth, so after the step before it and before the step that it announces.
 *
 * /run/secretfs/crash holds N and is taken away when its time has come: the daemon that systemd starts next lives. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ORDER "/run/secretfs/crash"

static int announced;

static void crash_if_due(void)
{
    int due;
    FILE *order = fopen(ORDER, "re");

    if (!order)
        return;
    if (fscanf(order, "%d", &due) == 1 && ++announced == due) {
        unlink(ORDER);
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
