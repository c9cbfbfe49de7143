/*
 * pam_pinward offers, at a locked screen or a login, to unblock the smart card that is in a
 * reader. It is a go-between only: `bridge pam` runs as a process of its own, says a line at
 * a time what to show or to ask, and is told the answers. pam_exec cannot do that, for it
 * has no way to ask; and a login process is no place for a whole Go runtime.
 *
 *     auth  optional  pam_pinward.so  [bridge=/usr/bin/bridge] [dir=FOLDER] [soft=URL]
 *
 * Its invariant: it always answers PAM_IGNORE, so that it neither lets anybody in nor keeps
 * anybody out, and it ends though the bridge hangs. Nothing is logged, and answers are wiped.
 *
 * A line is a letter, a space and a text: I shows it, E asks with an echo, P without one. "."
 * says that the bridge is alive; it does so every 5 s.
 */
#define _GNU_SOURCE
#define PAM_SM_AUTH
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <security/pam_appl.h>
#include <security/pam_modules.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_LINE 1000
#define MAX_FD 1024
#define SILENCE 15 /* seconds without a word, after which the bridge is given up */

/* next_line reads a line, without its end, and returns its length or -1. */
static int next_line(int fd, char *line)
{
	int n = 0;
	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		int ready = poll(&p, 1, SILENCE * 1000);
		if (ready < 0 && errno == EINTR)
			continue;
		char c;
		if (ready <= 0 || read(fd, &c, 1) != 1)
			return -1;
		if (c == '\n') {
			line[n] = 0;
			return n;
		}
		if (n < MAX_LINE - 1)
			line[n++] = c;
	}
}

static int write_all(int fd, const char *b, size_t n)
{
	while (n > 0) {
		ssize_t w = write(fd, b, n);
		if (w < 0 && errno == EINTR)
			continue;
		if (w <= 0)
			return -1;
		b += w;
		n -= (size_t)w;
	}
	return 0;
}

/* talk shows or asks what a line says, and gives the bridge the answer. */
static int talk(const struct pam_conv *conv, const char *line, int answers)
{
	int style = line[0] == 'E' ? PAM_PROMPT_ECHO_ON : line[0] == 'P' ? PAM_PROMPT_ECHO_OFF : PAM_TEXT_INFO;
	struct pam_message m = { .msg_style = style, .msg = line + 2 };
	const struct pam_message *all = &m;
	struct pam_response *r = NULL;
	int failed = conv->conv(1, &all, &r, conv->appdata_ptr) != PAM_SUCCESS;
	if (!failed && style != PAM_TEXT_INFO)
		failed = r == NULL || r->resp == NULL || strlen(r->resp) > MAX_LINE ||
			 write_all(answers, r->resp, strlen(r->resp)) || write_all(answers, "\n", 1);
	if (r != NULL) {
		if (r->resp != NULL) {
			explicit_bzero(r->resp, strlen(r->resp));
			free(r->resp);
		}
		free(r);
	}
	return failed ? -1 : 0;
}

static void run(char *const args[], char *const env[], int in, int out)
{
	int null = open("/dev/null", O_WRONLY);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0 || null < 0 || dup2(null, 2) < 0)
		_exit(127);
	for (int fd = 3; fd < MAX_FD; fd++)
		close(fd);
	signal(SIGPIPE, SIG_DFL);
	execve(args[0], args, env);
	_exit(127);
}

/* ended waits a moment for the bridge to end by itself, and then ends it. */
static void ended(pid_t pid)
{
	for (int i = 0; i < 20; i++) {
		pid_t r = waitpid(pid, NULL, WNOHANG);
		if (r == pid || (r < 0 && errno != EINTR))
			return;
		nanosleep(&(struct timespec){ .tv_nsec = 50 * 1000 * 1000 }, NULL);
	}
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

int pam_sm_authenticate(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
	const struct pam_conv *conv = NULL;
	if (flags & PAM_SILENT || pam_get_item(pamh, PAM_CONV, (const void **)&conv) != PAM_SUCCESS || conv == NULL || conv->conv == NULL)
		return PAM_IGNORE;
	char *args[8] = { "/usr/bin/bridge", "pam" };
	int n = 2;
	for (int i = 0; i < argc && n < 6; i++) {
		if (!strncmp(argv[i], "bridge=", 7))
			args[0] = (char *)argv[i] + 7;
		else if (!strncmp(argv[i], "dir=", 4))
			args[n++] = "-dir", args[n++] = (char *)argv[i] + 4;
		else if (!strncmp(argv[i], "soft=", 5))
			args[n++] = "-soft", args[n++] = (char *)argv[i] + 5;
	}
	int to[2], from[2];
	if (pipe2(to, O_CLOEXEC) < 0)
		return PAM_IGNORE;
	if (pipe2(from, O_CLOEXEC) < 0) {
		close(to[0]);
		close(to[1]);
		return PAM_IGNORE;
	}
	struct sigaction ignore = { .sa_handler = SIG_IGN }, before;
	sigaction(SIGPIPE, &ignore, &before);
	char **env = pam_getenvlist(pamh); /* never the program's own, which a user may have made */
	char *none[] = { NULL };
	pid_t pid = fork();
	if (pid == 0)
		run(args, env != NULL ? env : none, to[0], from[1]);
	close(to[0]);
	close(from[1]);
	if (pid > 0) {
		char line[MAX_LINE];
		while (next_line(from[0], line) >= 0) {
			if (line[0] == '.')
				continue;
			if (strchr("IEP", line[0]) == NULL || line[0] == 0 || line[1] != ' ' || talk(conv, line, to[1]) < 0)
				break;
		}
	}
	close(to[1]);
	close(from[0]);
	if (pid > 0)
		ended(pid);
	sigaction(SIGPIPE, &before, NULL);
	for (char **e = env; e != NULL && *e != NULL; e++)
		free(*e);
	free(env);
	return PAM_IGNORE;
}

int pam_sm_setcred(pam_handle_t *pamh, int flags, int argc, const char **argv)
{
	(void)pamh, (void)flags, (void)argc, (void)argv;
	return PAM_IGNORE;
}
