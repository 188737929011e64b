// Memory for coroutine frames.
//
// A request on the data path costs two or three coroutine frames. malloc makes that a measurable part of a
// cached 4 KiB read, so each thread keeps short free lists by size class.
#ifndef BERTH_IMAGE_IO_FRAME_POOL_H_
#define BERTH_IMAGE_IO_FRAME_POOL_H_

#include <cstddef>

namespace berth {

// Returns memory for a frame of `size` bytes, aligned for any type. Thread-safe; never returns null.
void* AllocateFrame(size_t size);

// Gives back what AllocateFrame(size) returned, on any thread.
void FreeFrame(void* frame, size_t size);

}  // namespace berth

#endif  // BERTH_IMAGE_IO_FRAME_POOL_H_
