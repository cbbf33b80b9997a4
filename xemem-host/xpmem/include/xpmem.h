/*
 * xpmem.h - memory of one process attached by another.
 *
 * Link with -lxpmem, or load libxpmem.so.0. Names, types and errno are those
 * of XPMEM; there is no kernel module behind it but XEMEM's broker, which is
 * started when it is needed. docs/xemem.md tells what is different.
 *
 *     exporter                                  importer
 *     segid = xpmem_make(p, size,               apid = xpmem_get(segid,
 *             XPMEM_PERMIT_MODE,                        XPMEM_RDWR,
 *             (void *)0600);                            XPMEM_PERMIT_MODE, NULL);
 *     ... tell the importer the number ...      struct xpmem_addr addr = {apid, 0};
 *                                               q = xpmem_attach(addr, size, NULL);
 *
 * Functions return -1 and set errno when they fail (xpmem_attach: (void *)-1).
 * With XPMEM_DEBUG in the environment they also say why on standard error. All
 * may be called from any thread. After fork(2) the child has none of its
 * parent's attachments and cannot use its apids: it gets and attaches again.
 */
#ifndef XPMEM_H
#define XPMEM_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#ifdef __cplusplus
extern "C" {
#endif

/* A segment, known by the same number in every process; positive. */
typedef int64_t xpmem_segid_t;

/* Access to a segment, of one process alone; positive. */
typedef int64_t xpmem_apid_t;

/* A place in a segment: bytes from its beginning, a multiple of a page. */
struct xpmem_addr {
	xpmem_apid_t apid;
	off_t offset;
};

/* Flags of xpmem_get: exactly one of them. */
#define XPMEM_RDONLY 0x1
#define XPMEM_RDWR 0x2

/* The one kind of permit: unix mode bits, (void *)0 to (void *)0777. */
#define XPMEM_PERMIT_MODE 0x1

/* The size of a whole address space. xpmem_make refuses it: EOPNOTSUPP. */
#define XPMEM_MAXADDR_SIZE ((size_t)(-1L))

/* Looks for a broker, or starts one: 0. Other functions do so themselves. */
int xpmem_init(void);

/* The version of this interface. */
int xpmem_version(void);

/*
 * Makes a segment of whole pages at vaddr: its segid. The pages move into a
 * memory object under the same addresses.
 * EINVAL: no such permit; not whole pages; beyond the address space.
 * ENOMEM: not mapped throughout; no memory for the object.
 * EACCES: not readable and writable throughout, or executable.
 * EOPNOTSUPP: a file or a stack in it; the whole address space.
 * EBUSY: shared already, by other means than a segment; ids are exhausted.
 */
xpmem_segid_t xpmem_make(void *vaddr, size_t size, int permit_type,
                         void *permit_value);

/*
 * Ends a segment: nobody gets or attaches it any more. What is attached stays.
 * EINVAL: no segid; EACCES: another process made it; ENOENT: it has ended.
 */
int xpmem_remove(xpmem_segid_t segid);

/*
 * Asks for access: an apid, another one each time. permit_value is NULL.
 * EINVAL: no segid; both flags or none; a permit_value.
 * EACCES: the mode of the segment does not allow it.
 * ENOENT: there is no such segment, or it has ended.
 */
xpmem_apid_t xpmem_get(xpmem_segid_t segid, int flags, int permit_type,
                       void *permit_value);

/*
 * Gives access back, and unmaps what was attached by it.
 * EINVAL: no apid; EACCES: of another process; ENOENT: released already.
 */
int xpmem_release(xpmem_apid_t apid);

/*
 * Maps size bytes, rounded up to pages, at vaddr or, if it is NULL, anywhere;
 * read-only by an apid that is.
 * EINVAL: no apid; offset or vaddr not at a page; size 0; beyond the segment;
 *         an attachment or memory of a segment at vaddr.
 * EACCES: an apid of another process. ENOENT: released, or the segment ended.
 */
void *xpmem_attach(struct xpmem_addr addr, size_t size, void *vaddr);

/*
 * Unmaps the attachment that vaddr is in. It is no error if nothing is there.
 * EINVAL: something is there that is no attachment.
 */
int xpmem_detach(void *vaddr);

#ifdef __cplusplus
}
#endif

#endif
