#include "control/event_hub.h"

#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace berth::control {
namespace {

v1::Event Named(const std::string& name) {
  v1::Event event;
  event.set_export_(name);
  return event;
}

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }

TEST(EventHubTest, EventsAreNumberedAndRemembered) {
  EventHub hub(8, "me");
  hub.Publish(Named("a"));
  hub.Publish(Named("b"));
  const auto first = hub.WaitForNext(0, Soon());
  ASSERT_TRUE(first.ok() && first->has_value());
  EXPECT_EQ((*first)->export_(), "a");
  EXPECT_EQ((*first)->sequence(), 1u);
  EXPECT_EQ((*first)->server_id(), "me");
  EXPECT_TRUE((*first)->has_time());
  EXPECT_EQ((*hub.WaitForNext(1, Soon()))->export_(), "b");
  const auto nothing = hub.WaitForNext(2, absl::Now());
  ASSERT_TRUE(nothing.ok());
  EXPECT_FALSE(nothing->has_value());
}

TEST(EventHubTest, ASlowWatcherLearnsThatEventsAreForgotten) {
  EventHub hub(4, "me");
  for (int i = 0; i < 10; ++i) hub.Publish(Named(absl::StrCat(i)));
  EXPECT_TRUE(absl::IsDataLoss(hub.WaitForNext(5, Soon()).status()));
  EXPECT_EQ((*hub.WaitForNext(6, Soon()))->sequence(), 7u);
  EXPECT_TRUE(absl::IsOutOfRange(hub.WaitForNext(11, Soon()).status()));
}

TEST(EventHubTest, AnyMessageCanBeSent) {
  EventHub hub(4, "me");
  for (const std::string& message : {std::string("/mnt/\xff"), std::string(100000, '\xc3')}) {
    v1::Event event;
    event.set_message(message);
    const uint64_t before = hub.last_sequence();
    hub.Publish(std::move(event));
    const auto published = hub.WaitForNext(before, Soon());
    ASSERT_TRUE(published.ok() && published->has_value());
    v1::Event received;
    EXPECT_TRUE(received.ParseFromString((*published)->SerializeAsString()));
    EXPECT_LE(received.message().size(), 1024u);
  }
}

TEST(EventHubTest, WaitsAreWokenAndEnded) {
  EventHub hub(4, "me");
  std::thread publisher([&hub] { hub.Publish(Named("late")); });
  const auto event = hub.WaitForNext(0, Soon());
  publisher.join();
  ASSERT_TRUE(event.ok() && event->has_value());
  std::thread closer([&hub] { hub.Close(); });
  EXPECT_TRUE(absl::IsCancelled(hub.WaitForNext(1, Soon()).status()));
  closer.join();
  // What was said before is still heard.
  EXPECT_TRUE(hub.WaitForNext(0, Soon()).ok());
}

}  // namespace
}  // namespace berth::control
