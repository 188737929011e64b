#include "image/filter/token_bucket.h"

#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

#include "gtest/gtest.h"

namespace berth {
namespace {

constexpr int64_t kSecond = 1'000'000'000;
constexpr int64_t kStart = 1000 * kSecond;

TEST(TokenBucketTest, NoRateIsNoLimit) {
  TokenBucket bucket;
  EXPECT_EQ(bucket.Take(kStart, std::numeric_limits<uint64_t>::max()), kStart);
  bucket.Configure(kStart, 0, 5);
  EXPECT_EQ(bucket.Take(kStart, 1'000'000), kStart);
  EXPECT_EQ(bucket.Take(kStart, 1'000'000), kStart);
}

TEST(TokenBucketTest, EachTakerGetsItsTime) {
  TokenBucket bucket;
  bucket.Configure(kStart, 10, 1);
  EXPECT_LE(bucket.Take(kStart, 1), kStart);
  EXPECT_EQ(bucket.Take(kStart, 1), kStart + kSecond / 10);
  EXPECT_EQ(bucket.Take(kStart, 3), kStart + kSecond / 5);
  EXPECT_EQ(bucket.Take(kStart, 1), kStart + kSecond / 2);
}

TEST(TokenBucketTest, ABurstAfterAPauseAndNoMore) {
  TokenBucket bucket;
  bucket.Configure(kStart, 100, 5);
  const int64_t later = kStart + 60 * kSecond;
  int at_once = 0;
  while (bucket.Take(later, 1) <= later) ++at_once;
  // Five are in the bucket, and it passes one more as long as it is not in debt.
  EXPECT_EQ(at_once, 6);
}

TEST(TokenBucketTest, TheDefaultBurstIsATenthOfASecond) {
  TokenBucket bucket;
  bucket.Configure(kStart, 1000, 0);
  const int64_t later = kStart + kSecond;
  int at_once = 0;
  while (bucket.Take(later, 1) <= later) ++at_once;
  EXPECT_EQ(at_once, 101);
}

TEST(TokenBucketTest, WhatIsLargerThanTheBurstPassesIntoDebt) {
  TokenBucket bucket;
  bucket.Configure(kStart, 1000, 10);
  const int64_t later = kStart + kSecond;
  EXPECT_LE(bucket.Take(later, 3000), later);
  EXPECT_EQ(bucket.Take(later, 1), later + 2990 * kSecond / 1000);
}

TEST(TokenBucketTest, NoDebtIsLongerThanItsBound) {
  TokenBucket bucket;
  bucket.Configure(kStart, 1, 1);
  EXPECT_LE(bucket.Take(kStart, std::numeric_limits<uint64_t>::max()), kStart);
  for (int i = 0; i < 100; ++i) {
    EXPECT_LE(bucket.Take(kStart, std::numeric_limits<uint64_t>::max()),
              kStart + TokenBucket::kLongestDebtNs);
  }
}

TEST(TokenBucketTest, NewLimitsForgiveDebts) {
  TokenBucket bucket;
  bucket.Configure(kStart, 1, 1);
  EXPECT_LE(bucket.Take(kStart, 5), kStart);
  EXPECT_GT(bucket.Take(kStart, 1), kStart);
  bucket.Configure(kStart + 5, 1000, 1);
  EXPECT_LE(bucket.Take(kStart + 5, 1), kStart + 5);
}

// Over any stretch of time no more than the rate passes, whoever takes.
TEST(TokenBucketTest, ManyThreadsShareTheRate) {
  TokenBucket bucket;
  bucket.Configure(kStart, 1000, 1);
  constexpr int kThreads = 4;
  constexpr int kTakes = 2000;
  std::vector<int64_t> last(kThreads, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kTakes; ++i) {
        const int64_t from = bucket.Take(kStart, 1);
        EXPECT_GE(from, last[t]);
        last[t] = from;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  // Nothing was lost between the threads: 8,000 at 1,000 a second are 8 seconds.
  EXPECT_EQ(bucket.Take(kStart, 1), kStart + kThreads * kTakes * kSecond / 1000);
}

}  // namespace
}  // namespace berth
