/* Installed set-uid root: says whether the bit took effect, which
 * no_new_privs prevents. critest looks for these words. */
#include <stdio.h>
#include <unistd.h>

int main(void)
{
	printf("Effective uid: %d\n", (int)geteuid());
	return 0;
}
