#include "nbd/reply_queue.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace berth::nbd {
namespace {

// A call takes up to IOV_MAX (1,024) vectors; fewer keep the stack small and cost a call in 128 replies.
constexpr size_t kVectorsInline = 256;
// These live in a coroutine's frame.
constexpr size_t kVectorsInFrame = 64;

}  // namespace

uint8_t* ReplyQueue::Add(size_t header_size, Buffer payload, size_t payload_size) {
  const uint8_t* const data = payload ? payload.data() : nullptr;
  return AddLast(header_size, data, payload_size, std::move(payload));
}

uint8_t* ReplyQueue::AddLast(size_t header_size, const uint8_t* data, size_t payload_size, Buffer owner) {
  ++collected_.replies;
  return AddPart(header_size, data, payload_size, std::move(owner));
}

uint8_t* ReplyQueue::AddPart(size_t header_size, const uint8_t* data, size_t payload_size, Buffer owner) {
  Batch& batch = collected_;
  const size_t at = batch.headers.size();
  batch.headers.resize(at + header_size);
  collected_bytes_ += header_size + payload_size;
  if (!batch.pieces.empty() && batch.pieces.back().payload_size == 0) {
    Piece& last = batch.pieces.back();
    last.header_size += header_size;
    last.payload_size = payload_size;
    last.data = data;
    last.owner = std::move(owner);
  } else {
    batch.pieces.push_back({header_size, payload_size, data, std::move(owner)});
  }
  return batch.headers.data() + at;
}

size_t ReplyQueue::Batch::FillVectors(absl::Span<iovec> vectors) const {
  size_t count = 0;
  size_t header = header_offset;
  size_t skip = piece_offset;
  for (size_t i = next_piece; i < pieces.size() && count + 2 <= vectors.size(); ++i) {
    const Piece& piece = pieces[i];
    if (skip < piece.header_size) {
      vectors[count++] = {const_cast<uint8_t*>(headers.data()) + header + skip, piece.header_size - skip};
    }
    const size_t payload_skip = skip - std::min(skip, piece.header_size);
    if (payload_skip < piece.payload_size) {
      vectors[count++] = {const_cast<uint8_t*>(piece.data) + payload_skip, piece.payload_size - payload_skip};
    }
    header += piece.header_size;
    skip = 0;
  }
  return count;
}

void ReplyQueue::Batch::Advance(size_t bytes) {
  piece_offset += bytes;
  while (!done()) {
    Piece& piece = pieces[next_piece];
    const size_t size = piece.header_size + piece.payload_size;
    if (piece_offset < size) return;
    piece_offset -= size;
    header_offset += piece.header_size;
    piece.owner = Buffer();
    ++next_piece;
  }
}

void ReplyQueue::Batch::Clear() {
  headers.clear();
  pieces.clear();
  replies = next_piece = header_offset = piece_offset = 0;
}

void ReplyQueue::Flush() {
  while (!waiting_ && !collected_.pieces.empty()) {
    std::swap(collected_, leaving_);
    collected_bytes_ = 0;
    if (error_ == 0 && !SendWithoutWaiting()) {
      waiting_ = true;
      Spawn(SendRest(gate_.Enter()));
      return;
    }
    FinishBatch();
  }
}

bool ReplyQueue::SendWithoutWaiting() {
  std::array<iovec, kVectorsInline> vectors;
  while (!leaving_.done()) {
    const size_t count = leaving_.FillVectors(absl::MakeSpan(vectors));
    const int sent = transport_.TrySend({vectors.data(), count});
    if (sent == -EAGAIN) return false;
    if (sent == -EINTR) continue;
    if (sent <= 0) {
      Fail(-sent);
      return true;
    }
    leaving_.Advance(static_cast<size_t>(sent));
  }
  return true;
}

Task<void> ReplyQueue::SendRest(Gate::Holder) {
  std::array<iovec, kVectorsInFrame> vectors;
  while (!leaving_.done()) {
    const size_t count = leaving_.FillVectors(absl::MakeSpan(vectors));
    const int sent = co_await transport_.Send(absl::MakeConstSpan(vectors.data(), count));
    if (sent <= 0) {
      Fail(-sent);
      break;
    }
    leaving_.Advance(static_cast<size_t>(sent));
  }
  waiting_ = false;
  FinishBatch();
  Flush();
}

void ReplyQueue::Fail(int error) {
  error_ = error == 0 ? EPIPE : error;
  // The receiving side has to hear of it too.
  transport_.Shutdown();
}

void ReplyQueue::FinishBatch() {
  const size_t replies = leaving_.replies;
  leaving_.Clear();
  on_sent_(replies);
}

void ReplyQueue::ShrinkToIdle() {
  if (collected_.pieces.empty()) collected_ = Batch();
  if (!waiting_) leaving_ = Batch();
}

}  // namespace berth::nbd
