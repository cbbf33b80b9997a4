/*
 * Executes one instruction that is not for programs.
 *
 * Usage: instructions hlt|cli|sti|cr3|cr0|wrmsr|rdmsr|lgdt|lidt|ltr|invlpg|in|
 *                     out|int80|int3|int4|icebp|ud2|trap-flag|sysret|iret|
 *                     syscall32|syscall-nowhere|vmcall|vmmcall|xsetbv|lock|
 *                     sgdt|sidt|sldt|str|smsw|swapgs|clts|invd|wbinvd|monitor
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define IS(name) (strcmp(how, name) == 0)

/* A far return to 32-bit code, then SYSCALL: on some nested hosts that enters
 * ring 0 at the low half of CSTAR. The code lies below 4 GiB (no PIE). */
static void syscall_from_32_bit_code(void)
{
    __asm__ volatile("push $0x23\n\t"
                     "lea 1f(%%rip), %%rax\n\t"
                     "push %%rax\n\t"
                     "lretq\n\t"
                     ".code32\n"
                     "1:\n\t"
                     "mov $39, %%eax\n\t"
                     "syscall\n\t"
                     "ud2\n\t"
                     ".code64"
                     : : : "rax", "rcx", "r11", "memory");
}

/* What tells a program about its kernel; refused where the processor has UMIP. */
static void telling(const char *how)
{
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) table;
    uint64_t word;
    if (IS("sgdt"))
        __asm__ volatile("sgdt %0" : "=m"(table));
    if (IS("sidt"))
        __asm__ volatile("sidt %0" : "=m"(table));
    if (IS("sldt"))
        __asm__ volatile("sldt %0" : "=r"(word));
    if (IS("str"))
        __asm__ volatile("str %0" : "=r"(word));
    if (IS("smsw"))
        __asm__ volatile("smsw %0" : "=r"(word));
}

static void privileged(const char *how)
{
    uint64_t zero = 0;
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) table = {0, 0};
    if (IS("hlt"))
        __asm__ volatile("hlt");
    if (IS("cli"))
        __asm__ volatile("cli");
    if (IS("sti"))
        __asm__ volatile("sti");
    if (IS("cr3"))
        __asm__ volatile("mov %0, %%cr3" : : "r"(zero));
    if (IS("cr0"))
        __asm__ volatile("mov %0, %%cr0" : : "r"(zero));
    if (IS("wrmsr"))
        __asm__ volatile("wrmsr" : : "c"(0xc0000082), "a"(0), "d"(0));
    if (IS("rdmsr"))
        __asm__ volatile("rdmsr" : : "c"(0xc0000082) : "eax", "edx");
    if (IS("lgdt"))
        __asm__ volatile("lgdt %0" : : "m"(table));
    if (IS("lidt"))
        __asm__ volatile("lidt %0" : : "m"(table));
    if (IS("ltr"))
        __asm__ volatile("ltr %w0" : : "r"(0x40));
    if (IS("invlpg"))
        __asm__ volatile("invlpg %0" : : "m"(zero));
    if (IS("in"))
        __asm__ volatile("in $0x60, %%al" : : : "eax");
    if (IS("out"))
        __asm__ volatile("out %%al, $0x60" : : "a"(0));
    if (IS("xsetbv"))
        __asm__ volatile("xsetbv" : : "c"(0), "a"(1), "d"(0));
    if (IS("sysret"))
        __asm__ volatile("sysretq");
    if (IS("swapgs"))
        __asm__ volatile("swapgs");
    if (IS("clts"))
        __asm__ volatile("clts");
    if (IS("invd"))
        __asm__ volatile("invd");
    if (IS("wbinvd"))
        __asm__ volatile("wbinvd");
    if (IS("monitor"))
        __asm__ volatile("monitor" : : "a"(&zero), "c"(0), "d"(0));
    if (IS("vmcall"))
        __asm__ volatile("vmcall" : : "a"(5));
    if (IS("vmmcall"))
        __asm__ volatile("vmmcall" : : "a"(5));
}

int main(int argc, char **argv)
{
    const char *how = argc > 1 ? argv[1] : "";
    printf("%s\n", how);
    fflush(stdout);
    privileged(how);
    telling(how);
    if (IS("int80"))
        __asm__ volatile("int $0x80" : : "a"(20));
    if (IS("int3"))
        __asm__ volatile("int3");
    if (IS("int4"))
        __asm__ volatile("int $4");
    if (IS("icebp"))
        __asm__ volatile(".byte 0xf1");
    if (IS("ud2"))
        __asm__ volatile("ud2");
    if (IS("lock"))
        __asm__ volatile(".byte 0xf0, 0x90");
    if (IS("trap-flag"))
        __asm__ volatile("pushfq; orq $0x100, (%%rsp); popfq; nop; nop" : : : "memory");
    if (IS("iret"))
        /* To ring 0, on a stack of its own. */
        __asm__ volatile("push $0x18; push %%rsp; pushfq; push $0x10; lea 1f(%%rip), %%rax;"
                         "push %%rax; iretq; 1: nop" : : : "rax", "memory");
    if (IS("syscall32"))
        syscall_from_32_bit_code();
    if (IS("syscall-nowhere"))
        /* With a stack that is not there, and one that is the kernel's. */
        __asm__ volatile("mov %%rsp, %%rbx; xor %%esp, %%esp; mov $39, %%eax; syscall;"
                         "mov $0xffff900000200000, %%rsp; mov $39, %%eax; syscall;"
                         "mov %%rbx, %%rsp" : : : "rax", "rbx", "rcx", "r11", "memory");
    printf("survived\n");
    return 3;
}
