/* Threads that wait for each other for ever. */
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static pthread_mutex_t mutex[2] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER};
static pthread_barrier_t both;

static void *embrace(void *argument)
{
    long nr = (long)argument;
    pthread_mutex_lock(&mutex[nr]);
    pthread_barrier_wait(&both);
    if (nr == 0)
        write(1, "waiting\n", 8);
    pthread_mutex_lock(&mutex[1 - nr]);
    return NULL;
}

int main(void)
{
    pthread_t threads[2];
    pthread_barrier_init(&both, NULL, 2);
    for (long n = 0; n < 2; n++)
        pthread_create(&threads[n], NULL, embrace, (void *)n);
    pthread_join(threads[0], NULL);
    return 0;
}
