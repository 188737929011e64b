#include "tests/bench/workload.h"

namespace berth::bench {

const std::vector<Workload>& Matrix() {
  static const auto& matrix = *new std::vector<Workload>{
      {.name = "4k read QD1", .kind = Kind::kRead},
      {.name = "4k read QD32", .kind = Kind::kRead, .depth = 32},
      {.name = "4k read 64x4", .kind = Kind::kRead, .connections = 4, .depth = 64},
      {.name = "4k write QD32", .kind = Kind::kWrite, .depth = 32},
      {.name = "4k 70/30 QD32", .kind = Kind::kMixed, .depth = 32},
      {.name = "128k read QD16", .kind = Kind::kRead, .block_size = 128 << 10, .depth = 16},
      {.name = "128k write QD16", .kind = Kind::kWrite, .block_size = 128 << 10, .depth = 16},
      {.name = "1M read QD16", .kind = Kind::kRead, .block_size = 1 << 20, .depth = 16},
      {.name = "1M write QD16", .kind = Kind::kWrite, .block_size = 1 << 20, .depth = 16},
      {.name = "flush QD16", .kind = Kind::kFlush, .depth = 16},
      {.name = "write-zeroes QD16", .kind = Kind::kZero, .depth = 16},
      {.name = "trim QD16", .kind = Kind::kTrim, .depth = 16},
      {.name = "write+flush QD8", .kind = Kind::kWriteFlush, .depth = 8},
      {.name = "kernel-style 4k read QD32", .kind = Kind::kRead, .depth = 32, .kernel_style = true},
      {.name = "kernel-style 4k write QD32", .kind = Kind::kWrite, .depth = 32, .kernel_style = true},
      {.name = "TCP 4k read QD32", .setup = Setup::kTcp, .kind = Kind::kRead, .depth = 32},
      {.name = "TCP 128k read QD16",
       .setup = Setup::kTcp,
       .kind = Kind::kRead,
       .block_size = 128 << 10,
       .depth = 16},
      {.name = "disk 4k read QD32", .setup = Setup::kDisk, .kind = Kind::kRead, .depth = 32},
      {.name = "disk 4k write QD32", .setup = Setup::kDisk, .kind = Kind::kWrite, .depth = 32},
      {.name = "disk write+flush QD8", .setup = Setup::kDisk, .kind = Kind::kWriteFlush, .depth = 8},
      {.name = "O_DIRECT 4k read QD32", .setup = Setup::kDiskDirect, .kind = Kind::kRead, .depth = 32},
      {.name = "O_DIRECT 4k write QD32", .setup = Setup::kDiskDirect, .kind = Kind::kWrite, .depth = 32},
  };
  return matrix;
}

}  // namespace berth::bench
