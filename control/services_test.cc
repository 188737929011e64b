// The services over a real gRPC channel on a Unix socket, with a fake kernel below.
#include "control/services.h"

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "berth/v1/attachments.grpc.pb.h"
#include "berth/v1/exports.grpc.pb.h"
#include "berth/v1/images.grpc.pb.h"
#include "berth/v1/monitoring.grpc.pb.h"
#include "control/control_fixture.h"
#include "control/rpc_server.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace berth::control {
namespace {

using grpc::StatusCode;
using testing::HasSubstr;

template <typename Detail>
Detail DetailOf(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  EXPECT_EQ(details.code(), static_cast<int>(status.error_code()));
  Detail detail;
  bool found = false;
  for (const auto& any : details.details()) found = found || any.UnpackTo(&detail);
  EXPECT_TRUE(found) << Detail::descriptor()->full_name() << " is missing: " << status.error_message();
  return detail;
}

class ServicesTest : public ControlFixture {
 protected:
  void SetUp() override {
    export_options_.max_exports = 20;
    Start();
    auto roots = ImageRoots::Within({directory()});
    ASSERT_TRUE(roots.ok());
    roots_ = *std::move(roots);
    environment_.exports = &exports();
    environment_.attachments = &attachments();
    environment_.events = &events();
    environment_.roots = &roots_;
    environment_.secret_roots = &roots_;
    environment_.operations = &operations_;
    environment_.watchers = &watchers_;
    environment_.disconnect_clients = [](const std::string&) {};
    services_.push_back(MakeExportService(environment_));
    services_.push_back(MakeAttachmentService(environment_));
    services_.push_back(MakeImageService(environment_));
    services_.push_back(MakeMonitoringService(environment_));
    RpcServerOptions options;
    options.unix_paths = {directory() + "/rpc"};
    auto server = RpcServer::Start(options, services_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel("unix:" + options.unix_paths[0], grpc::InsecureChannelCredentials());
    exports_stub_ = v1::ExportService::NewStub(channel_);
    attachments_stub_ = v1::AttachmentService::NewStub(channel_);
    images_stub_ = v1::ImageService::NewStub(channel_);
    monitoring_stub_ = v1::MonitoringService::NewStub(channel_);
  }

  void TearDown() override { server_->Stop(absl::Now()); }

  template <typename Stub, typename Request, typename Answer>
  grpc::Status Call(Stub& stub, grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Answer*),
                    const Request& request, Answer* answer) {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    return (stub.*method)(&context, request, answer);
  }

  grpc::Status Create(const std::string& name, const v1::ExportSpec& spec, v1::Export* answer = nullptr) {
    v1::CreateExportRequest request;
    request.set_name(name);
    *request.mutable_spec() = spec;
    v1::Export unused;
    return Call(*exports_stub_, &v1::ExportService::Stub::CreateExport, request,
                answer == nullptr ? &unused : answer);
  }

  ImageRoots roots_ = ImageRoots::Anywhere();
  static constexpr size_t kMaxWatchers = 2;
  WatcherSlots watchers_{kMaxWatchers};
  Operations operations_{OperationsOptions(), &watchers_, nullptr};
  ServiceEnvironment environment_;
  std::vector<std::unique_ptr<grpc::Service>> services_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::ExportService::Stub> exports_stub_;
  std::unique_ptr<v1::AttachmentService::Stub> attachments_stub_;
  std::unique_ptr<v1::ImageService::Stub> images_stub_;
  std::unique_ptr<v1::MonitoringService::Stub> monitoring_stub_;
};

TEST_F(ServicesTest, ALuksImageIsMadeWithASecretOfTheRequest) {
  v1::CreateImageRequest image;
  image.set_path(directory() + "/safe.luks");
  image.set_format(v1::IMAGE_FORMAT_LUKS);
  image.set_size_bytes(1 << 20);
  image.mutable_secret()->set_value("open sesame");
  image.mutable_luks()->mutable_iteration_time()->set_nanos(10'000'000);
  v1::ImageInfo info;
  const auto create = [&] { return Call(*images_stub_, &v1::ImageService::Stub::CreateImage, image, &info); };
  // The second call is a repeated one.
  for (int i = 0; i < 2; ++i) {
    const grpc::Status status = create();
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(info.size_bytes(), 1u << 20);
    EXPECT_EQ(info.luks().cipher_mode(), "xts-plain64");
    EXPECT_EQ(info.luks().active_key_slots_size(), 1);
  }
  v1::InspectImageRequest inspect;
  inspect.set_path(image.path());
  inspect.set_format(v1::IMAGE_FORMAT_LUKS);
  v1::ImageInfo inspected;
  ASSERT_TRUE(Call(*images_stub_, &v1::ImageService::Stub::InspectImage, inspect, &inspected).ok());
  EXPECT_EQ(inspected.luks().uuid(), info.luks().uuid());
  v1::ExportSpec spec;
  spec.mutable_image()->set_format(v1::IMAGE_FORMAT_LUKS);
  spec.mutable_image()->set_path(image.path());
  spec.mutable_image()->mutable_secret()->set_value("open sesame");
  const grpc::Status exported = Create("safe", spec);
  EXPECT_TRUE(exported.ok()) << exported.error_message();

  image.mutable_secret()->set_value("another");
  EXPECT_EQ(create().error_code(), grpc::StatusCode::ALREADY_EXISTS);
  image.set_path(directory() + "/other.luks");
  image.clear_secret();
  EXPECT_EQ(create().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  image.mutable_secret()->set_value("open sesame");
  image.set_size_bytes(1000);
  EXPECT_EQ(create().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  image.set_size_bytes(1 << 20);
  // An operation would keep the secret.
  image.set_operation_name("make");
  EXPECT_EQ(create().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  image.clear_operation_name();
  image.mutable_luks()->set_cipher_algorithm("serpent-256");
  EXPECT_EQ(create().error_code(), grpc::StatusCode::UNIMPLEMENTED);
  image.set_format(v1::IMAGE_FORMAT_RAW);
  EXPECT_EQ(create().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(ServicesTest, TheMainPath) {
  v1::CreateImageRequest image;
  image.set_path(directory() + "/disk.raw");
  image.set_format(v1::IMAGE_FORMAT_RAW);
  image.set_size_bytes(1 << 20);
  v1::ImageInfo info;
  for (int i = 0; i < 2; ++i) {
    const grpc::Status status = Call(*images_stub_, &v1::ImageService::Stub::CreateImage, image, &info);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(info.size_bytes(), 1u << 20);
  }
  v1::Export created;
  grpc::Status status = Create("disk", RawSpec("disk.raw"), &created);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(created.size_bytes(), 1u << 20);

  v1::AttachRequest attach;
  attach.set_name("a");
  attach.mutable_spec()->set_export_("disk");
  v1::Attachment attachment;
  status = Call(*attachments_stub_, &v1::AttachmentService::Stub::Attach, attach, &attachment);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(attachment.device(), "/dev/nbd0");

  v1::GetExportRequest get;
  get.set_name("disk");
  v1::Export shown;
  ASSERT_TRUE(Call(*exports_stub_, &v1::ExportService::Stub::GetExport, get, &shown).ok());
  EXPECT_THAT(shown.attachments(), testing::ElementsAre("a"));
  EXPECT_EQ(shown.connections(), attachment_options_.connections);

  v1::InspectImageRequest inspect;
  inspect.set_path(image.path());
  inspect.set_format(v1::IMAGE_FORMAT_RAW);
  ASSERT_TRUE(Call(*images_stub_, &v1::ImageService::Stub::InspectImage, inspect, &info).ok());
  EXPECT_TRUE(info.in_use());

  v1::GetStatisticsRequest ask;
  ask.set_export_("disk");
  v1::GetStatisticsResponse statistics;
  ASSERT_TRUE(Call(*monitoring_stub_, &v1::MonitoringService::Stub::GetStatistics, ask, &statistics).ok());
  ASSERT_EQ(statistics.exports_size(), 1);
  EXPECT_EQ(statistics.exports(0).operations_size(), 7);
  EXPECT_GT(statistics.exports(0).operations(0).completed(), 0u);  // The kernel looked at its last sector.

  v1::DetachRequest detach;
  detach.set_name("a");
  google::protobuf::Empty empty;
  ASSERT_TRUE(Call(*attachments_stub_, &v1::AttachmentService::Stub::Detach, detach, &empty).ok());
  v1::DeleteExportRequest remove;
  remove.set_name("disk");
  ASSERT_TRUE(Call(*exports_stub_, &v1::ExportService::Stub::DeleteExport, remove, &empty).ok());
  EXPECT_EQ(Call(*exports_stub_, &v1::ExportService::Stub::DeleteExport, remove, &empty).error_code(),
            StatusCode::NOT_FOUND);
  remove.set_allow_missing(true);
  EXPECT_TRUE(Call(*exports_stub_, &v1::ExportService::Stub::DeleteExport, remove, &empty).ok());
}

TEST_F(ServicesTest, Qcow2ImagesAreMadeShownAndResized) {
  v1::CreateImageRequest image;
  image.set_path(directory() + "/base.raw");
  image.set_format(v1::IMAGE_FORMAT_RAW);
  image.set_size_bytes(1 << 20);
  v1::ImageInfo info;
  const auto create = [&] { return Call(*images_stub_, &v1::ImageService::Stub::CreateImage, image, &info); };
  ASSERT_TRUE(create().ok());
  image.mutable_qcow2()->set_compat("0.10");
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(create()).field_violations(0).field(), "qcow2");
  image.set_path(directory() + "/top.qcow2");
  image.set_format(v1::IMAGE_FORMAT_QCOW2);
  image.set_size_bytes(0);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(create()).field_violations(0).field(), "size_bytes");
  v1::Qcow2Options& options = *image.mutable_qcow2();
  options.set_backing_file("base.raw");
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(create()).field_violations(0).field(), "qcow2.backing_format");
  options.set_backing_format(v1::IMAGE_FORMAT_RAW);
  options.set_lazy_refcounts(true);
  grpc::Status status = create();
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(status).field_violations(0).field(), "qcow2");
  EXPECT_THAT(status.error_message(), HasSubstr("lazy_refcounts"));
  options.set_compat("1.1");
  options.set_cluster_size_bytes(4096);
  options.set_refcount_bits(8);
  options.set_compression_type(v1::COMPRESSION_TYPE_ZSTD);
  for (int i = 0; i < 2; ++i) {
    status = create();
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(info.size_bytes(), 1u << 20);
    EXPECT_EQ(info.format(), v1::IMAGE_FORMAT_QCOW2);
  }
  options.set_refcount_bits(16);
  EXPECT_EQ(create().error_code(), StatusCode::ALREADY_EXISTS);

  v1::InspectImageRequest inspect;
  inspect.set_path(image.path());
  inspect.set_format(v1::IMAGE_FORMAT_QCOW2);
  inspect.set_backing_chain(true);
  status = Call(*images_stub_, &v1::ImageService::Stub::InspectImage, inspect, &info);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(info.qcow2().ShortDebugString(),
            absl::StrCat("compat: \"1.1\" cluster_size_bytes: 4096 refcount_bits: 8 lazy_refcounts: true "
                         "compression_type: COMPRESSION_TYPE_ZSTD backing_file: \"base.raw\" "
                         "full_backing_file: \"",
                         directory(), "/base.raw\" backing_format: \"raw\""));
  ASSERT_EQ(info.backing_chain_size(), 1);
  EXPECT_EQ(info.backing_chain(0).path(), directory() + "/base.raw");

  v1::ResizeImageRequest resize;
  resize.set_path(image.path());
  resize.set_format(v1::IMAGE_FORMAT_QCOW2);
  resize.set_size_bytes(2 << 20);
  ASSERT_TRUE(Call(*images_stub_, &v1::ImageService::Stub::ResizeImage, resize, &info).ok());
  EXPECT_EQ(info.size_bytes(), 2u << 20);
  resize.set_size_bytes(1 << 20);
  status = Call(*images_stub_, &v1::ImageService::Stub::ResizeImage, resize, &info);
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).reason(), "WOULD_SHRINK");

  v1::ExportSpec spec;
  spec.mutable_image()->set_path(image.path());
  spec.mutable_image()->set_format(v1::IMAGE_FORMAT_QCOW2);
  ASSERT_TRUE(Create("q", spec).ok());
  ASSERT_TRUE(Attach("a", SpecOf("q")).ok());
  v1::UpdateExportRequest update;
  update.set_name("q");
  update.mutable_update_mask()->add_paths("size_bytes");
  update.set_size_bytes(100 << 20);
  v1::Export changed;
  status = Call(*exports_stub_, &v1::ExportService::Stub::UpdateExport, update, &changed);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(changed.size_bytes(), 100u << 20);
  update.set_size_bytes(1 << 20);
  update.set_allow_shrink(true);
  status = Call(*exports_stub_, &v1::ExportService::Stub::UpdateExport, update, &changed);
  ASSERT_TRUE(status.ok()) << status.error_message();
  update.set_size_bytes(1000);
  status = Call(*exports_stub_, &v1::ExportService::Stub::UpdateExport, update, &changed);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(status).field_violations(0).field(), "size_bytes");
  EXPECT_EQ(Call(*images_stub_, &v1::ImageService::Stub::ResizeImage, resize, &info).error_code(),
            StatusCode::FAILED_PRECONDITION);
  ASSERT_TRUE(Call(*images_stub_, &v1::ImageService::Stub::InspectImage, inspect, &info).ok());
  EXPECT_TRUE(info.in_use());
  EXPECT_EQ(info.size_bytes(), 1u << 20);
}

TEST_F(ServicesTest, ErrorsCarryTheirDetails) {
  grpc::Status status = Create("a/b", MemorySpec());
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(status).field_violations(0).field(), "name");
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).domain(), "berth");

  status = Create(std::string(10000, 'x'), MemorySpec());
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT) << status.error_message();
  EXPECT_LT(status.error_message().size(), 1000u);

  v1::GetExportRequest get;
  get.set_name("none");
  v1::Export shown;
  status = Call(*exports_stub_, &v1::ExportService::Stub::GetExport, get, &shown);
  EXPECT_EQ(status.error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(status).resource_name(), "none");

  ASSERT_TRUE(Create("a", MemorySpec()).ok());
  ASSERT_TRUE(Create("a", MemorySpec()).ok());
  status = Create("a", MemorySpec(2 << 20));
  EXPECT_EQ(status.error_code(), StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(status).resource_type(), "export");
  EXPECT_THAT(status.error_message(), HasSubstr("size_bytes"));

  ASSERT_TRUE(Attach("t", SpecOf("a")).ok());
  v1::DeleteExportRequest remove;
  remove.set_name("a");
  google::protobuf::Empty empty;
  status = Call(*exports_stub_, &v1::ExportService::Stub::DeleteExport, remove, &empty);
  EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
  EXPECT_EQ(DetailOf<google::rpc::PreconditionFailure>(status).violations(0).subject(), "t");
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).reason(), "EXPORT_IN_USE");
}

TEST_F(ServicesTest, FilesAreOpenedInsideTheRootsOnly) {
  const auto refusal = [this](const std::string& path) {
    v1::ExportSpec spec;
    spec.mutable_image()->set_format(v1::IMAGE_FORMAT_RAW);
    spec.mutable_image()->set_path(path);
    return Create("x", spec);
  };
  for (const std::string& path : {std::string("/etc/passwd"), directory() + "/../../etc/passwd"}) {
    const grpc::Status status = refusal(path);
    EXPECT_EQ(status.error_code(), StatusCode::PERMISSION_DENIED) << path << status.error_message();
    EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).reason(), "OUTSIDE_IMAGE_ROOTS");
    EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(status).resource_name(), path);
  }
  ASSERT_EQ(symlink("/etc/passwd", (directory() + "/link").c_str()), 0);
  EXPECT_EQ(refusal(directory() + "/link").error_code(), StatusCode::PERMISSION_DENIED);
  const grpc::Status missing = refusal(directory() + "/missing.raw");
  EXPECT_EQ(missing.error_code(), StatusCode::NOT_FOUND) << missing.error_message();
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(missing).resource_type(), "image");
  const grpc::Status folder = refusal(directory());
  EXPECT_EQ(folder.error_code(), StatusCode::INVALID_ARGUMENT) << folder.error_message();
  ASSERT_TRUE(Create("one", RawSpec("one.raw")).ok());
  const grpc::Status locked = refusal(directory() + "/one.raw");
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(locked).reason(), "IMAGE_LOCKED") << locked.error_message();
}

TEST_F(ServicesTest, ListsComeInPages) {
  for (int i = 10; i < 17; ++i) ASSERT_TRUE(Create(absl::StrCat("e", i), NullSpec()).ok());
  v1::ListExportsRequest request;
  request.set_page_size(3);
  std::vector<std::string> names;
  do {
    v1::ListExportsResponse page;
    ASSERT_TRUE(Call(*exports_stub_, &v1::ExportService::Stub::ListExports, request, &page).ok());
    for (const v1::Export& item : page.exports()) names.push_back(item.name());
    request.set_page_token(page.next_page_token());
    ASSERT_LE(names.size(), 7u);
  } while (!request.page_token().empty());
  EXPECT_THAT(names, testing::ElementsAre("e10", "e11", "e12", "e13", "e14", "e15", "e16"));
}

TEST_F(ServicesTest, AttachmentsComeInPages) {
  v1::ExportSpec shared = MemorySpec();
  shared.set_shared_writers(true);
  ASSERT_TRUE(Create("e", shared).ok());
  for (const char* name : {"a1", "a2", "a3"}) ASSERT_TRUE(Attach(name, SpecOf("e")).ok());
  v1::ListAttachmentsRequest request;
  request.set_page_size(2);
  v1::ListAttachmentsResponse first;
  ASSERT_TRUE(Call(*attachments_stub_, &v1::AttachmentService::Stub::ListAttachments, request, &first).ok());
  ASSERT_EQ(first.attachments_size(), 2);
  EXPECT_EQ(first.attachments(1).name(), "a2");
  request.set_page_token(first.next_page_token());
  v1::ListAttachmentsResponse second;
  ASSERT_TRUE(Call(*attachments_stub_, &v1::AttachmentService::Stub::ListAttachments, request, &second).ok());
  ASSERT_EQ(second.attachments_size(), 1);
  EXPECT_EQ(second.attachments(0).name(), "a3");
  EXPECT_EQ(second.next_page_token(), "");
}

TEST_F(ServicesTest, TheNumberOfExportsIsLimited) {
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(Create(absl::StrCat("e", i), NullSpec()).ok());
  const grpc::Status status = Create("more", NullSpec());
  EXPECT_EQ(status.error_code(), StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).reason(), "LIMIT_REACHED");
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).metadata().at("limit"), "max-exports");
  EXPECT_THAT(status.error_message(), HasSubstr("--max-exports"));
}

TEST_F(ServicesTest, UpdatesChangeWhatTheMaskNames) {
  ASSERT_TRUE(Create("a", MemorySpec()).ok());
  v1::UpdateExportRequest request;
  request.set_name("a");
  request.mutable_update_mask()->add_paths("description");
  request.set_description("new");
  request.set_size_bytes(2 << 20);
  v1::Export updated;
  ASSERT_TRUE(Call(*exports_stub_, &v1::ExportService::Stub::UpdateExport, request, &updated).ok());
  EXPECT_EQ(updated.spec().description(), "new");
  EXPECT_EQ(updated.size_bytes(), 1u << 20);
  EXPECT_EQ(exports().Find("a")->description, "new");

  request.mutable_update_mask()->add_paths("size_bytes");
  request.mutable_update_mask()->add_paths("rate_limit");
  request.mutable_rate_limit()->set_operations_per_second(1000000);
  ASSERT_TRUE(Call(*exports_stub_, &v1::ExportService::Stub::UpdateExport, request, &updated).ok());
  EXPECT_EQ(updated.size_bytes(), 2u << 20);
  EXPECT_EQ(updated.spec().rate_limit().operations_per_second(), 1000000u);

  request.mutable_update_mask()->add_paths("read_only");
  grpc::Status status = Call(*exports_stub_, &v1::ExportService::Stub::UpdateExport, request, &updated);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(status).field_violations(0).field(), "update_mask");
  request.clear_update_mask();
  status = Call(*exports_stub_, &v1::ExportService::Stub::UpdateExport, request, &updated);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(status).field_violations(0).field(), "update_mask");
}

TEST_F(ServicesTest, BlockSizesAndResizesOfClients) {
  v1::ExportSpec spec = MemorySpec();
  spec.mutable_block_sizes()->set_minimum_bytes(1000);
  grpc::Status status = Create("a", spec);
  EXPECT_EQ(status.error_code(), StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(status).field_violations(0).field(),
            "spec.block_sizes.minimum_bytes");
  EXPECT_THAT(status.error_message(), HasSubstr("power of two"));
  ASSERT_TRUE(Create("a", MemorySpec()).ok());

  v1::UpdateExportRequest request;
  request.set_name("a");
  request.mutable_update_mask()->add_paths("block_sizes");
  request.mutable_block_sizes()->set_minimum_bytes(4096);
  request.mutable_block_sizes()->set_preferred_bytes(512);
  v1::Export updated;
  status = Call(*exports_stub_, &v1::ExportService::Stub::UpdateExport, request, &updated);
  EXPECT_EQ(DetailOf<google::rpc::BadRequest>(status).field_violations(0).field(),
            "block_sizes.preferred_bytes");
  request.mutable_block_sizes()->clear_preferred_bytes();
  request.mutable_update_mask()->add_paths("client_resize");
  request.set_client_resize(true);
  status = Call(*exports_stub_, &v1::ExportService::Stub::UpdateExport, request, &updated);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(updated.spec().block_sizes().minimum_bytes(), 4096u);
  EXPECT_TRUE(updated.spec().client_resize());
  EXPECT_EQ(exports().Find("a")->block_sizes.minimum, 4096u);
  EXPECT_NE(exports().Find("a")->resize, nullptr);
}

TEST_F(ServicesTest, EventsAreStreamed) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  const auto stream = monitoring_stub_->WatchEvents(&context, v1::WatchEventsRequest());
  stream->WaitForInitialMetadata();
  ASSERT_TRUE(Create("a", MemorySpec()).ok());
  ASSERT_TRUE(Attach("t", SpecOf("a")).ok());
  v1::Event event;
  ASSERT_TRUE(stream->Read(&event));
  EXPECT_EQ(event.type(), v1::EVENT_TYPE_EXPORT_CREATED);
  EXPECT_EQ(event.export_(), "a");
  const v1::Event first = event;
  ASSERT_TRUE(stream->Read(&event));
  EXPECT_EQ(event.type(), v1::EVENT_TYPE_ATTACHED);
  EXPECT_EQ(event.device(), "/dev/nbd0");
  EXPECT_EQ(event.sequence(), first.sequence() + 1);

  // Again from the first one on.
  grpc::ClientContext again;
  again.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
  v1::WatchEventsRequest request;
  request.set_after_sequence(first.sequence());
  request.set_server_id(first.server_id());
  const auto second = monitoring_stub_->WatchEvents(&again, request);
  ASSERT_TRUE(second->Read(&event));
  EXPECT_EQ(event.type(), v1::EVENT_TYPE_ATTACHED);

  // As many as are allowed.
  grpc::ClientContext third;
  const auto refused = monitoring_stub_->WatchEvents(&third, v1::WatchEventsRequest());
  EXPECT_FALSE(refused->Read(&event));
  EXPECT_EQ(refused->Finish().error_code(), StatusCode::RESOURCE_EXHAUSTED);

  events().Close();
  EXPECT_FALSE(stream->Read(&event));
  EXPECT_TRUE(stream->Finish().ok());
  second->Finish();
}

// A watcher that left makes room, once the server has noticed.
TEST_F(ServicesTest, WatchersThatLeaveMakeRoom) {
  const absl::Time deadline = Soon();
  for (size_t made = 0; made < 3 * kMaxWatchers;) {
    ASSERT_LT(absl::Now(), deadline) << "after " << made << " watchers";
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    v1::Event event;
    const auto stream = monitoring_stub_->WatchEvents(&context, v1::WatchEventsRequest());
    stream->WaitForInitialMetadata();
    events().Publish(v1::Event());
    if (stream->Read(&event)) {
      ++made;
      context.TryCancel();
    }
    const StatusCode code = stream->Finish().error_code();
    EXPECT_TRUE(code == StatusCode::CANCELLED || code == StatusCode::RESOURCE_EXHAUSTED) << code;
  }
}

TEST_F(ServicesTest, StatisticsOfNothingAreNone) {
  v1::GetStatisticsRequest request;
  v1::GetStatisticsResponse answer;
  const auto get = [&] {
    answer.Clear();
    return Call(*monitoring_stub_, &v1::MonitoringService::Stub::GetStatistics, request, &answer);
  };
  EXPECT_TRUE(get().ok());
  request.set_export_("none");
  const grpc::Status status = get();
  EXPECT_EQ(status.error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(status).resource_name(), "none");
  EXPECT_EQ(DetailOf<google::rpc::ResourceInfo>(status).resource_type(), "export");
}

TEST_F(ServicesTest, EventsOfAnotherServerAreLost) {
  grpc::ClientContext context;
  v1::WatchEventsRequest request;
  request.set_after_sequence(5);
  request.set_server_id("another");
  const auto stream = monitoring_stub_->WatchEvents(&context, request);
  v1::Event event;
  EXPECT_FALSE(stream->Read(&event));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), StatusCode::DATA_LOSS);
  EXPECT_EQ(DetailOf<google::rpc::ErrorInfo>(status).reason(), "SERVER_RESTARTED");
}

}  // namespace
}  // namespace berth::control
