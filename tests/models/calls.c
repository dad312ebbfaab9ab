/* Calls a library's functions for another process: usage: calls LIBRARY MEMORY. Memory that both share is a file, which lies here at
 * BASE. What is to be called stands in standard input, what it returned in standard output. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define BASE ((void *)0x100000000000)

typedef struct {
    char name[32];
    int64_t argument[8];
    double number;
} Call;

/* Whole numbers and addresses are handed over in registers of their own, floats in others: what a function does not take is not looked at. */
typedef int64_t (*Function)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, float);

int main(int count, char **words) {
    void *library = count == 3 ? dlopen(words[1], RTLD_NOW) : NULL;
    if (!library) return fprintf(stderr, "%s\n", count == 3 ? dlerror() : "usage: calls LIBRARY MEMORY"), 1;
    int file = open(words[2], O_RDWR);
    struct stat about;
    if (file < 0 || fstat(file, &about)) return perror(words[2]), 1;
    if (mmap(BASE, (size_t)about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) != BASE) return perror("mmap"), 1;
    for (Call call; fread(&call, sizeof call, 1, stdin) == 1;) {
        Function function = (Function)dlsym(library, call.name);
        if (!function) return fprintf(stderr, "%s\n", dlerror()), 1;
        const int64_t *a = call.argument;
        int32_t result = (int32_t)function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], (float)call.number);
        fwrite(&result, sizeof result, 1, stdout);
        fflush(stdout);
    }
    return 0;
}
