/*
 * Makes symbols of this very library disappear, as if it were an older driver.
 *
 * A function that merely returns FUNCTION_NOT_FOUND would not do: clients ask
 * dlsym what there is, and one that calls a missing function without asking
 * dies in the dynamic linker, which is just what a test wants to see. So the
 * dynamic symbol table is edited before anyone has looked into it.
 */
#include "fake.h"

#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static ElfW(Sym) *table;
static size_t symbols;
static const char *names;
static int protection;

/* The loader may have relocated the dynamic section's addresses already. */
static const void *address(const struct dl_phdr_info *info, ElfW(Addr) a)
{
    return (const void *)(a < info->dlpi_addr ? a + info->dlpi_addr : a);
}

static bool inside(const struct dl_phdr_info *info, const ElfW(Phdr) *p, const void *what)
{
    ElfW(Addr) a = (ElfW(Addr))what - info->dlpi_addr;
    return p->p_type == PT_LOAD && a >= p->p_vaddr && a < p->p_vaddr + p->p_memsz;
}

/* find is called for each loaded object; ours is the one that this code is in. */
static int find(struct dl_phdr_info *info, size_t size, void *unused)
{
    const ElfW(Dyn) *dynamic = NULL;
    bool ours = false;
    (void)size;
    (void)unused;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        ours = ours || inside(info, p, (const void *)find);
        if (p->p_type == PT_DYNAMIC)
            dynamic = (const ElfW(Dyn) *)(info->dlpi_addr + p->p_vaddr);
    }
    if (!ours || dynamic == NULL)
        return 0;
    for (; dynamic->d_tag != DT_NULL; dynamic++) {
        const void *p = address(info, dynamic->d_un.d_ptr);
        if (dynamic->d_tag == DT_SYMTAB)
            table = (ElfW(Sym) *)p;
        else if (dynamic->d_tag == DT_STRTAB)
            names = p;
        else if (dynamic->d_tag == DT_HASH)
            symbols = ((const Elf32_Word *)p)[1]; /* as many chains as symbols */
    }
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        if (table != NULL && inside(info, p, table))
            protection = (p->p_flags & PF_R ? PROT_READ : 0) | (p->p_flags & PF_W ? PROT_WRITE : 0) |
                         (p->p_flags & PF_X ? PROT_EXEC : 0);
    }
    return 1;
}

static ElfW(Sym) *symbol(const char *name, size_t length)
{
    if (table == NULL)
        dl_iterate_phdr(find, NULL);
    if (table == NULL || names == NULL)
        return NULL;
    for (size_t i = 1; i < symbols; i++) {
        const char *candidate = names + table[i].st_name;
        if (strlen(candidate) == length && memcmp(candidate, name, length) == 0)
            return &table[i];
    }
    return NULL;
}

bool symbol_exists(const char *name)
{
    return symbol(name, strlen(name)) != NULL;
}

static void hide(ElfW(Sym) *s)
{
    unsigned long page = (unsigned long)sysconf(_SC_PAGESIZE);
    unsigned long from = (unsigned long)s & ~(page - 1);
    unsigned long to = ((unsigned long)(s + 1) + page - 1) & ~(page - 1);
    if (mprotect((void *)from, to - from, PROT_READ | PROT_WRITE) != 0) {
        perror("fakenvml: FAKENVML_ABSENT: mprotect");
        return;
    }
    s->st_value = 0;
    s->st_shndx = SHN_UNDEF;
    mprotect((void *)from, to - from, protection);
}

void symbols_hide(const char *list)
{
    while (*list != '\0') {
        size_t length = strcspn(list, ",");
        ElfW(Sym) *s = length > 0 ? symbol(list, length) : NULL;
        if (s != NULL) /* one that we never had is absent already */
            hide(s);
        list += length + (list[length] == ',');
    }
}
