// ReadCoverage: which bytes of a read have been answered, where chunks come in any order.
#ifndef BERTH_NBD_CLIENT_READ_COVERAGE_H_
#define BERTH_NBD_CLIENT_READ_COVERAGE_H_

#include <cstddef>
#include <cstdint>
#include <vector>

namespace berth::nbd {

// A value; confined to one thread.
class ReadCoverage {
 public:
  // Pieces between which there are gaps. A server that has a reason for more is not known, and each costs
  // memory and time.
  static constexpr size_t kMaxPieces = 4096;

  enum class Outcome : uint8_t { kAdded, kOutside, kOverlaps, kTooScattered };

  // Of the read.
  ReadCoverage(uint64_t offset, uint64_t length) : begin_(offset), end_(offset + length) {}

  // A chunk of `length` bytes at `offset`, both any values. kOutside also where it is empty.
  Outcome Add(uint64_t offset, uint64_t length);

  // Every byte was answered.
  bool complete() const { return covered_ == end_ - begin_; }
  uint64_t covered() const { return covered_; }

 private:
  struct Piece {
    uint64_t begin;
    uint64_t end;
  };

  uint64_t begin_;
  uint64_t end_;
  uint64_t covered_ = 0;
  std::vector<Piece> pieces_;  // In order; none touches the next.
};

}  // namespace berth::nbd

#endif  // BERTH_NBD_CLIENT_READ_COVERAGE_H_
