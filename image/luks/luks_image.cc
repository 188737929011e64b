#include "image/luks/luks_image.h"

#include <algorithm>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "image/luks/encrypted_device.h"
#include "image/qcow2/metadata_reader.h"

namespace berth::luks {

absl::StatusOr<Header> ReadHeader(BlockDevice& device, const HeaderPlace& place) {
  std::vector<uint8_t> bytes(std::min<uint64_t>(kHeaderBytes, place.bytes));
  if (!bytes.empty()) {
    absl::Status status = qcow2::ReadMetadata(device, place.offset, absl::MakeSpan(bytes));
    if (!status.ok()) return status;
  }
  return DecodeHeader(bytes, place.bytes);
}

absl::StatusOr<std::shared_ptr<const SectorCipher>> OpenCipher(BlockDevice& device, const HeaderPlace& place,
                                                               const Secret& secret, absl::Duration timeout) {
  const absl::StatusOr<Header> header = ReadHeader(device, place);
  if (!header.ok()) return header.status();
  const auto read = [&](uint64_t offset, absl::Span<uint8_t> out) {
    return qcow2::ReadMetadata(device, place.offset + offset, out);
  };
  const absl::StatusOr<Secret> key = Unlock(*header, secret, read, absl::Now() + timeout);
  if (!key.ok()) return key.status();
  return SectorCipher::Create(header->cipher_name, header->cipher_mode, *key);
}

absl::StatusOr<std::shared_ptr<BlockDevice>> OpenLuksImage(std::shared_ptr<BlockDevice> file,
                                                           const Secret& secret) {
  const HeaderPlace place = {0, file->size()};
  const absl::StatusOr<Header> header = ReadHeader(*file, place);
  if (!header.ok()) return header.status();
  absl::StatusOr<std::shared_ptr<const SectorCipher>> cipher = OpenCipher(*file, place, secret);
  if (!cipher.ok()) return cipher.status();
  auto device =
      std::make_shared<EncryptedDevice>(std::move(file), *std::move(cipher), header->payload_offset());
  if (device->size() == 0) {
    return absl::InvalidArgumentError(absl::StrCat("the LUKS image has no sector behind its header of ",
                                                   header->payload_offset(), " bytes"));
  }
  return device;
}

}  // namespace berth::luks
