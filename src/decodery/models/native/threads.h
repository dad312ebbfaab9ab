/* A few threads that run one function together, with barriers that cost less than a microsecond. */
#ifndef DECODERY_THREADS_H
#define DECODERY_THREADS_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#include "lanes.h"

/* Between the passes of a running request, some milliseconds at most, a thread stays awake: a processor that sleeps takes long to come
 * back, in virtual machines above all. It gives way to whoever else wants the processor. */
enum { MOST_THREADS = 64, SPINS_BEFORE_YIELD = 256, SPINS_BEFORE_SLEEP = 40000 };

typedef void (*Work)(int thread, int threads, void *argument);

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    int started;   /* worker threads that exist, without the caller */
    pid_t owner;   /* they do not survive a fork */
    Work work;
    void *argument;
    int threads;
    atomic_int generation, sleeping, done;
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_int phase;
    _Alignas(64) atomic_long next; /* the next piece of work of this phase */
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

/* Wait for the others. The last to come sets the work counter back. */
static inline void barrier(int threads) {
    int phase = atomic_load_explicit(&pool.phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool.arrived, 1, memory_order_acq_rel) + 1 == threads) {
        atomic_store_explicit(&pool.arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.next, 0, memory_order_relaxed);
        atomic_store_explicit(&pool.phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&pool.phase, memory_order_acquire) == phase; spins++) {
        if (spins < SPINS_BEFORE_YIELD)
            pause_thread();
        else
            sched_yield();
    }
}

/* The next piece of work of this phase; pieces are handed out one by one, so a slow thread takes fewer. */
static inline int64_t piece(void) { return atomic_fetch_add_explicit(&pool.next, 1, memory_order_relaxed); }

static void *worker(void *index) {
    int thread = (int)(intptr_t)index, seen = atomic_load(&pool.generation);
    atomic_fetch_add(&pool.done, 1);
    for (;;) {
        for (int spins = 0; spins < SPINS_BEFORE_SLEEP && atomic_load(&pool.generation) == seen; spins++) {
            pause_thread();
            if (spins % SPINS_BEFORE_YIELD == SPINS_BEFORE_YIELD - 1) sched_yield();
        }
        if (atomic_load(&pool.generation) == seen) {
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleeping, 1);
            while (atomic_load(&pool.generation) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
            atomic_fetch_sub(&pool.sleeping, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        seen++;
        if (thread < pool.threads) pool.work(thread, pool.threads, pool.argument);
        atomic_fetch_add(&pool.done, 1);
    }
    return NULL;
}

/* Run `work` on `threads` threads, the caller being thread 0; returns when all are done. One caller at a time. */
static void together(int threads, Work work, void *argument) {
    if (pool.owner != getpid()) {
        pool.owner = getpid();
        pool.started = 0;
        pthread_mutex_init(&pool.lock, NULL);
        pthread_cond_init(&pool.wake, NULL);
        atomic_store(&pool.generation, 0), atomic_store(&pool.sleeping, 0);
        atomic_store(&pool.arrived, 0);
    }
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    while (pool.started < threads - 1) {
        pthread_t fresh;
        atomic_store(&pool.done, 0);
        if (pthread_create(&fresh, NULL, worker, (void *)(intptr_t)(pool.started + 1))) break;
        pthread_detach(fresh);
        pool.started++;
        while (!atomic_load(&pool.done)) sched_yield();
    }
    if (threads > pool.started + 1) threads = pool.started + 1;
    pool.work = work, pool.argument = argument, pool.threads = threads;
    atomic_store(&pool.next, 0), atomic_store(&pool.done, 0);
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.generation, 1);
    if (atomic_load(&pool.sleeping)) pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    work(0, threads, argument);
    for (int spins = 0; atomic_load(&pool.done) < pool.started; spins++) {
        if (spins < SPINS_BEFORE_YIELD)
            pause_thread();
        else
            sched_yield();
    }
}

#endif
