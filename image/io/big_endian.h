// Numbers as NBD sends and qcow2 stores them: big endian, at any alignment.
#ifndef BERTH_IMAGE_IO_BIG_ENDIAN_H_
#define BERTH_IMAGE_IO_BIG_ENDIAN_H_

#include <endian.h>

#include <cstdint>
#include <cstring>

namespace berth {

inline uint16_t Load16(const uint8_t* bytes) {
  uint16_t value;
  memcpy(&value, bytes, sizeof(value));
  return be16toh(value);
}
inline uint32_t Load32(const uint8_t* bytes) {
  uint32_t value;
  memcpy(&value, bytes, sizeof(value));
  return be32toh(value);
}
inline uint64_t Load64(const uint8_t* bytes) {
  uint64_t value;
  memcpy(&value, bytes, sizeof(value));
  return be64toh(value);
}

inline void Store16(uint8_t* bytes, uint16_t value) {
  value = htobe16(value);
  memcpy(bytes, &value, sizeof(value));
}
inline void Store32(uint8_t* bytes, uint32_t value) {
  value = htobe32(value);
  memcpy(bytes, &value, sizeof(value));
}
inline void Store64(uint8_t* bytes, uint64_t value) {
  value = htobe64(value);
  memcpy(bytes, &value, sizeof(value));
}

}  // namespace berth

#endif  // BERTH_IMAGE_IO_BIG_ENDIAN_H_
