/* The program of the pause images: keeps a pod's namespaces alive, reaps what
 * is orphaned to it, leaves on SIGINT or SIGTERM. */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

static void reap(int number)
{
	(void)number;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static void leave(int number)
{
	(void)number;
	_exit(0);
}

int main(void)
{
	struct sigaction child = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
	struct sigaction stop = {.sa_handler = leave};

	if (sigaction(SIGCHLD, &child, NULL) || sigaction(SIGINT, &stop, NULL) ||
	    sigaction(SIGTERM, &stop, NULL))
		return 1;
	for (;;)
		pause();
}
