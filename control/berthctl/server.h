// Server: berthd as berthctl sees it.
#ifndef BERTH_CONTROL_BERTHCTL_SERVER_H_
#define BERTH_CONTROL_BERTHCTL_SERVER_H_

#include <memory>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "control/berthctl/console.h"
#include "control/berthctl/exit_code.h"
#include "control/berthctl/settings.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"

namespace berth::berthctl {

inline constexpr absl::Duration kUsualTimeout = absl::Seconds(60);
// For what writes a whole image.
inline constexpr absl::Duration kLongTimeout = absl::Hours(1);

// One thread. Nothing is sent again on its own account.
class Server {
 public:
  // INVALID_ARGUMENT for settings that do not fit together, or files that cannot be read. Does not connect
  // yet. `console` must outlive the server.
  static absl::StatusOr<std::unique_ptr<Server>> Open(const Settings& settings, Console& console);

  Console& console() { return console_; }
  std::shared_ptr<grpc::ChannelInterface> channel() { return channel_; }

  // Runs one call with a deadline and a spinner. Where it fails, says why on the console; `what` is the
  // command with the name it is about. `timeout` is used where the command line names none.
  ExitCode Call(const std::string& what, absl::FunctionRef<grpc::Status(grpc::ClientContext*)> rpc,
                absl::Duration timeout = kUsualTimeout);

  // What Call() does first: waits for the server for as long as --wait says, once.
  ExitCode WaitAsAsked(const std::string& what);

  // The call and its deadline alone.
  grpc::Status Try(absl::FunctionRef<grpc::Status(grpc::ClientContext*)> rpc,
                   absl::Duration timeout = kUsualTimeout);

  // Waits until the server answers, for as long as a call may take. For streams, which have no deadline.
  ExitCode AwaitConnection();

  // Says on the console why `what` failed.
  ExitCode Fail(const std::string& what, const grpc::Status& status);

 private:
  Server(const Settings& settings, Console& console, std::shared_ptr<grpc::Channel> channel)
      : settings_(settings), console_(console), channel_(std::move(channel)) {}

  const Settings settings_;
  Console& console_;
  const std::shared_ptr<grpc::Channel> channel_;
  bool waited_ = false;
};

}  // namespace berth::berthctl

#endif  // BERTH_CONTROL_BERTHCTL_SERVER_H_
