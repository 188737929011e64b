#include "image/io/frame_pool.h"

#include <array>
#include <new>

#include "image/io/address_sanitizer.h"

namespace berth {
namespace {

constexpr size_t kGranule = 64;
constexpr size_t kClasses = 32;           // Frames of up to 2 KiB are pooled; larger ones are rare.
constexpr size_t kMaxFramesAClass = 512;  // 32 classes of 512 frames: 1 MiB on average for a busy thread.

struct FreeList {
  struct Node {
    Node* next;
  };
  Node* head = nullptr;
  size_t length = 0;
};

struct ThreadFrames {
  std::array<FreeList, kClasses> lists;

  ~ThreadFrames() {
    for (FreeList& list : lists) {
      while (list.head != nullptr) {
        FreeList::Node* node = list.head;
        list.head = node->next;
        ::operator delete(node);
      }
      // A frame freed by a later thread-local destructor must not enter a list that nobody empties.
      list.length = kMaxFramesAClass;
    }
  }
};

thread_local ThreadFrames thread_frames;

size_t ClassOf(size_t size) { return (size - 1) / kGranule; }

}  // namespace

void* AllocateFrame(size_t size) {
  const size_t size_class = ClassOf(size);
  if (kAddressSanitizer || size_class >= kClasses) return ::operator new(size);
  FreeList& list = thread_frames.lists[size_class];
  if (list.head == nullptr) return ::operator new((size_class + 1) * kGranule);
  FreeList::Node* node = list.head;
  list.head = node->next;
  --list.length;
  return node;
}

void FreeFrame(void* frame, size_t size) {
  const size_t size_class = ClassOf(size);
  if (kAddressSanitizer || size_class >= kClasses) {
    ::operator delete(frame);
    return;
  }
  FreeList& list = thread_frames.lists[size_class];
  if (list.length >= kMaxFramesAClass) {
    ::operator delete(frame);
    return;
  }
  auto* node = static_cast<FreeList::Node*>(frame);
  node->next = list.head;
  list.head = node;
  ++list.length;
}

}  // namespace berth
