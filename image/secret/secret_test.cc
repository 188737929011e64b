#include "image/secret/secret.h"

#include <unistd.h>

#include <cstdlib>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "image/io/unique_fd.h"
#include "image/secret/secret_source.h"

namespace berth {
namespace {

std::string FileWith(const std::string& content) {
  std::string path = ::testing::TempDir() + "/secret-XXXXXX";
  const UniqueFd fd(mkstemp(path.data()));
  EXPECT_EQ(write(fd.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
  return path;
}

TEST(SecretTest, KeepsEveryByteUntilTheLastCopyIsGone) {
  absl::StatusOr<Secret> secret = Secret::FromBytes(absl::string_view("a\0b\n", 4));
  ASSERT_TRUE(secret.ok()) << secret.status();
  const Secret copy = *secret;
  *secret = Secret();
  EXPECT_TRUE(secret->empty());
  EXPECT_EQ(copy.bytes(), absl::string_view("a\0b\n", 4));
}

TEST(SecretTest, WipesAlsoWhatALongerTextLeft) {
  std::string text(100, 'x');
  const char* const place = text.data();
  text.resize(40);
  WipeString(&text);
  EXPECT_TRUE(text.empty());
  // The string keeps its place, so that looking is allowed for as long as it has the capacity.
  text.resize(100);
  ASSERT_EQ(text.data(), place);
  EXPECT_EQ(text, std::string(100, '\0'));
}

TEST(SecretTest, HasBounds) {
  EXPECT_EQ(Secret::FromBytes("").status().message(), "the secret is empty");
  EXPECT_TRUE(Secret::FromBytes(std::string(kMaxSecretBytes, 'x')).ok());
  EXPECT_EQ(Secret::FromBytes(std::string(kMaxSecretBytes + 1, 'x')).status().message(),
            "the secret has 65537 bytes; at most 65536 are taken");
}

TEST(SecretTest, Base64) {
  EXPECT_EQ(Secret::FromBase64("bGV0IG1l\nIGlu")->bytes(), "let me in");
  // The text is nobody's business.
  EXPECT_EQ(Secret::FromBase64("p@ss*word").status().message(), "the secret is not in base64");
}

TEST(SecretSourceTest, AFileIsTheSecretWithItsLastNewline) {
  EXPECT_EQ(ReadSecretFile(FileWith("open sesame\n"))->bytes(), "open sesame\n");
  EXPECT_EQ(ReadSecretFile(FileWith("")).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadSecretFile(FileWith(std::string(kMaxSecretBytes, 'x')))->bytes().size(), kMaxSecretBytes);
  EXPECT_EQ(ReadSecretFile(FileWith(std::string(kMaxSecretBytes + 1, 'x'))).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadSecretFile("/nowhere/key").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(ReadSecretFile("/").ok());
}

TEST(SecretSourceTest, APipeIsReadToItsEndAndNotForEver) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  UniqueFd reader(ends[0]);
  UniqueFd writer(ends[1]);
  ASSERT_EQ(write(writer.get(), "half ", 5), 5);
  EXPECT_EQ(ReadSecret(reader.get(), "descriptor 7", absl::Milliseconds(1)).status().message(),
            "no end of the secret came from descriptor 7 within 1ms");
  ASSERT_EQ(write(writer.get(), "and half", 8), 8);
  writer.Reset();
  EXPECT_EQ(ReadSecret(reader.get(), "descriptor 7")->bytes(), "and half");
}

// qemu's own way to hand secrets over; made with
// printf 'let me in' | openssl enc -aes-256-cbc -K 000102..1f -iv 00..0f
TEST(SecretSourceTest, AnEncryptedSecret) {
  std::string key;
  for (char c = 0; c < 32; ++c) key.push_back(c);
  const Secret key_secret = *Secret::FromBytes(key);
  const Secret iv = *Secret::FromBytes(key.substr(0, 16));
  const Secret encrypted = *Secret::FromBase64("aeNgcD/3SNkFUaDNrgY/aA==");
  EXPECT_EQ(DecryptSecret(encrypted, key_secret, iv)->bytes(), "let me in");
  EXPECT_FALSE(DecryptSecret(encrypted, iv, iv).ok());
  std::swap(key[0], key[1]);
  EXPECT_EQ(DecryptSecret(encrypted, *Secret::FromBytes(key), iv).status().message(),
            "the secret cannot be decrypted with this key and iv");
}

}  // namespace
}  // namespace berth
