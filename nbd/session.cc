#include "nbd/session.h"

#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "image/block/block_device.h"
#include "image/io/mutex.h"
#include "nbd/transmission.h"

namespace berth::nbd {
namespace {

class RunningSession final : public Session, public std::enable_shared_from_this<RunningSession> {
 public:
  RunningSession(Reactor& reactor, absl::AnyInvocable<void()> on_end)
      : reactor_(reactor), on_end_(std::move(on_end)) {}

  // On the reactor's thread.
  void Begin(std::unique_ptr<Transport> transport, Negotiated negotiated, const SessionOptions& options) {
    absl::StatusOr<SessionChannels> channels = OpenChannels(negotiated);
    if (!channels.ok()) {
      transport.reset();
      negotiated = Negotiated();
      End(channels.status());
      return;
    }
    transmission_ = Transmission::Start(
        reactor_, std::move(transport), std::move(negotiated), *std::move(channels), options,
        [self = shared_from_this()](absl::Status reason) { self->End(std::move(reason)); });
  }

  void Stop() override { Call(&Transmission::Stop); }
  void Abort() override { Call(&Transmission::Abort); }

  absl::Status end_reason() const override {
    MutexLock lock(&mutex_);
    return reason_;
  }

 private:
  absl::StatusOr<SessionChannels> OpenChannels(const Negotiated& negotiated) {
    absl::StatusOr<std::unique_ptr<BlockChannel>> block = negotiated.served->device->OpenChannel(reactor_);
    if (!block.ok()) return block.status();
    SessionChannels channels;
    channels.block = *std::move(block);
    for (const MetaContext& context : negotiated.contexts) {
      channels.contexts.emplace_back();
      if (context.source == nullptr) continue;
      absl::StatusOr<std::unique_ptr<StatusChannel>> opened = context.source->Open(reactor_);
      if (!opened.ok()) return opened.status();
      channels.contexts.back() = *std::move(opened);
    }
    return channels;
  }

  void Call(void (Transmission::*function)()) {
    MutexLock lock(&mutex_);
    // The reactor may be gone after the end.
    if (ended_) return;
    reactor_.Post([self = shared_from_this(), function] {
      if (self->transmission_ != nullptr) (self->transmission_->*function)();
    });
  }

  void End(absl::Status reason) {
    transmission_ = nullptr;
    {
      MutexLock lock(&mutex_);
      ended_ = true;
      reason_ = std::move(reason);
    }
    absl::AnyInvocable<void()> on_end = std::move(on_end_);
    on_end();
  }

  Reactor& reactor_;
  absl::AnyInvocable<void()> on_end_;  // Of the reactor's thread, as the next.
  Transmission* transmission_ = nullptr;

  mutable Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status reason_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::shared_ptr<Session> StartSession(Reactor& reactor, std::unique_ptr<Transport> transport,
                                      Negotiated negotiated, const SessionOptions& options,
                                      absl::AnyInvocable<void()> on_end) {
  auto session = std::make_shared<RunningSession>(reactor, std::move(on_end));
  reactor.Post([session, transport = std::move(transport), negotiated = std::move(negotiated),
                options]() mutable { session->Begin(std::move(transport), std::move(negotiated), options); });
  return session;
}

std::shared_ptr<Session> StartKernelSession(Reactor& reactor, UniqueFd socket,
                                            std::shared_ptr<const Export> served,
                                            const SessionOptions& options,
                                            absl::AnyInvocable<void()> on_end) {
  Negotiated negotiated;
  negotiated.served = std::move(served);
  SessionOptions kernel_options = options;
  kernel_options.refuse_while_stopping = false;
  return StartSession(reactor, MakePlainTransport(reactor, std::move(socket)), std::move(negotiated),
                      kernel_options, std::move(on_end));
}

}  // namespace berth::nbd
