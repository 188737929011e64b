// Encrypted images go from qemu and cryptsetup to us and back: LUKS by itself and in qcow2, and the old AES
// of qcow2, which is only read.
#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "image/io/reactor_pool.h"
#include "image/luks/luks_image.h"
#include "image/opener/opener.h"
#include "image/secret/secret.h"
#include "tests/conformance/blocking_channel.h"
#include "tests/conformance/reference_model.h"
#include "tests/interop/program.h"
#include "tests/interop/temporary_directory.h"

namespace berth::testing {
namespace {

using ::testing::HasSubstr;

constexpr char kCryptsetup[] = "/usr/sbin/cryptsetup";
constexpr char kSecret[] = "open sesame\n";
constexpr uint64_t kSize = (uint64_t{1} << 20) + 1536;

Secret TheSecret(const std::string& text = kSecret) { return *Secret::FromBytes(text); }

class EncryptionTest : public ::testing::Test {
 protected:
  void SetUp() override {
    pool_ = *ReactorPool::Create(1);
    WriteFile(Path("key"), kSecret);
  }

  std::string Path(const std::string& name) const { return directory_.Path(name); }

  std::string Run(std::vector<std::string> arguments) const {
    if (absl::StartsWith(arguments[0], "qemu-")) {
      const auto at = arguments.begin() + (arguments[0] == "qemu-img" ? 2 : 1);
      arguments.insert(at, {"--object", absl::StrCat("secret,id=s,file=", Path("key"))});
    }
    const ProgramResult result = RunProgram(arguments);
    EXPECT_EQ(result.exit_code, 0) << arguments[0] << " " << arguments[1] << ": " << result.errors
                                   << result.output;
    return result.output;
  }

  std::string ForQemu(const std::string& format) const {
    if (format == "luks") return absl::StrCat("driver=luks,key-secret=s,file.filename=", Path("image"));
    return absl::StrCat("driver=qcow2,encrypt.format=", format == "aes" ? "aes" : "luks",
                        ",encrypt.key-secret=s,file.filename=", Path("image"));
  }

  // Writes here and there, as qemu, and notes it.
  void WriteAsQemu(const std::string& format, ReferenceModel* model) const {
    std::vector<std::string> arguments = {"qemu-io", "--image-opts"};
    const auto write = [&](uint64_t offset, uint64_t length, int byte) {
      arguments.insert(arguments.end(), {"-c", absl::StrCat("write -P ", byte, " ", offset, " ", length)});
      model->Write(offset, std::vector<uint8_t>(length, static_cast<uint8_t>(byte)));
    };
    write(0, 70'000, 0x11);
    write(200'704, 512, 0x22);
    write(kSize - 4096, 4096, 0x33);
    write(300'001, 3, 0x44);
    arguments.push_back(ForQemu(format));
    Run(arguments);
  }

  std::string ReadAsQemu(const std::string& format) const {
    Run({"qemu-img", "convert", "-O", "raw", "--image-opts", ForQemu(format), Path("content")});
    return ReadFile(Path("content"));
  }

  absl::StatusOr<std::shared_ptr<BlockDevice>> Open(ImageFormat format, const Secret& secret = TheSecret(),
                                                    bool read_only = false) const {
    return OpenImage({.format = format, .path = Path("image"), .read_only = read_only, .secret = secret},
                     ImageRoots::Anywhere());
  }

  void ExpectContent(BlockDevice& device, const ReferenceModel& model) const {
    BlockingChannel channel(device, pool_->at(0));
    ASSERT_EQ(device.size(), model.size());
    EXPECT_TRUE(model.Agrees(0, channel.Read(0, model.size())));
    // In pieces that are no sectors.
    std::mt19937_64 random(1);
    for (int i = 0; i < 50; ++i) {
      const uint64_t offset = random() % (model.size() - 1);
      const uint64_t length = 1 + random() % std::min<uint64_t>(200'000, model.size() - offset);
      EXPECT_TRUE(model.Agrees(offset, channel.Read(offset, length)));
    }
  }

  void ChangeSome(BlockDevice& device, ReferenceModel* model) const {
    BlockingChannel channel(device, pool_->at(0));
    std::mt19937_64 random(2);
    for (int i = 0; i < 60; ++i) {
      uint64_t offset = random() % (model->size() - 1);
      uint64_t length = 1 + random() % std::min<uint64_t>(150'000, model->size() - offset);
      if (i % 2 == 0 && length > 1024) {
        offset -= offset % 512;
        length -= length % 512;
      }
      if (i % 6 == 5) {
        ASSERT_TRUE(channel.Zero(offset, length).ok());
        model->Zero(offset, length);
      } else {
        const std::vector<uint8_t> data = PatternBytes(offset, length, static_cast<uint64_t>(i));
        ASSERT_TRUE(channel.Write(offset, data).ok());
        model->Write(offset, data);
      }
    }
    ASSERT_TRUE(channel.Flush().ok());
  }

  // What qemu wrote is read; what is written over it qemu reads.
  void ThereAndBack(const std::string& qemu_format, ImageFormat format, ReferenceModel model) const {
    WriteAsQemu(qemu_format, &model);
    {
      const auto device = Open(format);
      ASSERT_TRUE(device.ok()) << device.status();
      ExpectContent(**device, model);
      ChangeSome(**device, &model);
      ExpectContent(**device, model);
    }
    const std::string content = ReadAsQemu(qemu_format);
    ASSERT_EQ(content.size(), model.size());
    EXPECT_TRUE(model.Agrees(0, std::vector<uint8_t>(content.begin(), content.end())));
  }

  TemporaryDirectory directory_;
  std::unique_ptr<ReactorPool> pool_;
};

// A new LUKS disk reads as anything.
ReferenceModel Unknown() {
  ReferenceModel model(kSize);
  model.Discard(0, kSize);
  return model;
}

// A LUKS image takes qemu two seconds to make, whatever the iteration time: one of each kind has to do, and
// cryptsetup's show the other ciphers.
TEST_F(EncryptionTest, LuksImagesOfQemu) {
  Run({"qemu-img", "create", "-q", "-f", "luks", "-o",
       "key-secret=s,iter-time=10,cipher-alg=aes-192,cipher-mode=xts,ivgen-alg=plain,hash-alg=sha1",
       Path("image"), std::to_string(kSize)});
  ThereAndBack("luks", ImageFormat::kLuks, Unknown());
}

TEST_F(EncryptionTest, OurLuksImages) {
  struct Case {
    const char* algorithm;
    const char* mode;
    const char* generator;
    const char* hash;
  };
  for (const Case& one :
       {Case{"", "", "", ""}, Case{"aes-192", "xts", "plain", "sha512"},
        Case{"aes-128", "cbc", "essiv", "sha1"}, Case{"aes-192", "cbc", "plain64", "sha384"}}) {
    SCOPED_TRACE(absl::StrCat(one.algorithm, " ", one.mode));
    luks::CreateOptions options;
    options.cipher_algorithm = one.algorithm;
    options.cipher_mode = one.mode;
    options.iv_generator = one.generator;
    options.hash = one.hash;
    options.iteration_time = luks::kMinIterationTime;
    const auto header = luks::MakeHeader(options, TheSecret());
    ASSERT_TRUE(header.ok()) << header.status();
    std::string file(header->begin(), header->end());
    file.resize(header->size() + kSize);
    WriteFile(Path("image"), file);
    // Which has no XTS with AES-192 of its own, and would ask the kernel.
    if (std::string(one.algorithm) + one.mode != "aes-192xts") {
      Run({kCryptsetup, "open", "--test-passphrase", "--key-file", Path("key"), Path("image")});
    }
    EXPECT_THAT(Run({kCryptsetup, "luksDump", Path("image")}), HasSubstr("Key Slot 0: ENABLED"));
    // qemu cannot write AES-192 in CBC mode: it aborts, as that key's stripes are no whole sectors.
    if (std::string(one.algorithm) == "aes-192" && std::string(one.mode) == "cbc") {
      EXPECT_TRUE(Open(ImageFormat::kLuks).ok());
    } else {
      ThereAndBack("luks", ImageFormat::kLuks, Unknown());
    }
  }
}

TEST_F(EncryptionTest, LuksImagesOfCryptsetup) {
  const auto format = [this](const std::vector<std::string>& options, uint64_t header_bytes) {
    WriteFile(Path("image"), "");
    std::filesystem::resize_file(Path("image"), header_bytes + kSize);
    std::vector<std::string> arguments = {kCryptsetup, "luksFormat", "--batch-mode",
                                          "--pbkdf-force-iterations", "1000"};
    arguments.insert(arguments.end(), options.begin(), options.end());
    arguments.insert(arguments.end(), {Path("image"), Path("key")});
    Run(arguments);
  };
  constexpr uint64_t kHeader1 = 2 << 20;
  constexpr uint64_t kHeader2 = 16 << 20;
  for (const std::vector<std::string>& options :
       {std::vector<std::string>{"--type", "luks1"},
        {"--type", "luks1", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--hash", "ripemd160"},
        {"--type", "luks1", "--cipher", "aes-cbc-plain", "--key-size", "192", "--hash", "sha224"},
        {"--type", "luks1", "--cipher", "aes-xts-plain64", "--key-size", "256", "--hash", "sha512"}}) {
    SCOPED_TRACE(options.back());
    format(options, kHeader1);
    // qemu aborts where a key's stripes are no whole sectors.
    if (options.size() < 6 || options[5] != "192") ThereAndBack("luks", ImageFormat::kLuks, Unknown());
    // The secret is in another slot than the first.
    WriteFile(Path("second"), "another");
    Run({kCryptsetup, "luksAddKey", "--batch-mode", "--pbkdf-force-iterations", "1000", "--key-file",
         Path("key"), Path("image"), Path("second")});
    EXPECT_TRUE(Open(ImageFormat::kLuks).ok());
    EXPECT_TRUE(Open(ImageFormat::kLuks, TheSecret("another")).ok());
    EXPECT_EQ(Open(ImageFormat::kLuks, TheSecret("neither")).status().code(),
              absl::StatusCode::kPermissionDenied);
  }
  format({"--type", "luks2", "--pbkdf", "pbkdf2"}, kHeader2);
  EXPECT_THAT(std::string(Open(ImageFormat::kLuks).status().message()), HasSubstr("LUKS version 2"));
}

TEST_F(EncryptionTest, LuksInQcow2) {
  for (const std::string options :
       {"extended_l2=on,cluster_size=16k,encrypt.cipher-mode=cbc,encrypt.ivgen-alg=essiv,"
        "encrypt.ivgen-hash-alg=sha256",
        "cluster_size=4k,data_file=DATA"}) {
    SCOPED_TRACE(options);
    std::string all = absl::StrCat("encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,", options);
    if (const size_t at = all.find("DATA"); at != std::string::npos) all.replace(at, 4, Path("data"));
    Run({"qemu-img", "create", "-q", "-f", "qcow2", "-o", all, Path("image"), std::to_string(kSize)});
    ThereAndBack("luks-in-qcow2", ImageFormat::kQcow2, ReferenceModel(kSize));
    Run({"qemu-img", "check", "-q", "--image-opts", ForQemu("luks-in-qcow2")});
  }
}

TEST_F(EncryptionTest, TheOldAesInQcow2IsRead) {
  Run({"qemu-img", "create", "-q", "-f", "qcow2", "-o",
       "encrypt.format=aes,encrypt.key-secret=s,cluster_size=4k", Path("image"), std::to_string(kSize)});
  ReferenceModel model(kSize);
  WriteAsQemu("aes", &model);
  {
    const auto device = Open(ImageFormat::kQcow2, TheSecret(), /*read_only=*/true);
    ASSERT_TRUE(device.ok()) << device.status();
    ExpectContent(**device, model);
  }
  EXPECT_EQ(Open(ImageFormat::kQcow2).status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(EncryptionTest, SecretsThatDoNotFit) {
  Run({"qemu-img", "create", "-q", "-f", "qcow2", "-o",
       "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", Path("base"), "1M"});
  Run({"qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", Path("base"), Path("image"), "1M"});
  // The secret is the backing file's here.
  EXPECT_TRUE(Open(ImageFormat::kQcow2).ok());
  const absl::Status wrong = Open(ImageFormat::kQcow2, TheSecret("open sesame")).status();
  EXPECT_EQ(wrong.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(wrong.message(),
            absl::StrCat("\"", Path("base"), "\": the secret does not open the encrypted image"));
  EXPECT_EQ(Open(ImageFormat::kQcow2, Secret()).status().code(), absl::StatusCode::kFailedPrecondition);
  Run({"qemu-img", "create", "-q", "-f", "qcow2", Path("image"), "1M"});
  EXPECT_THAT(std::string(Open(ImageFormat::kQcow2).status().message()), HasSubstr("nothing in the chain"));
  EXPECT_THAT(std::string(Open(ImageFormat::kRaw).status().message()), HasSubstr("never encrypted"));
  EXPECT_THAT(std::string(Open(ImageFormat::kLuks).status().message()), HasSubstr("not a LUKS image"));
}

}  // namespace
}  // namespace berth::testing
