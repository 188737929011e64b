#include "control/berthctl/command_line.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "control/berthctl/fake_berthd.h"
#include "gmock/gmock.h"
#include "google/protobuf/any.pb.h"
#include "google/protobuf/util/json_util.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"
#include "gtest/gtest.h"
#include "image/io/unique_fd.h"

namespace berth::berthctl {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

struct Result {
  ExitCode code;
  std::string out;
  std::string err;
};

Result Berthctl(const std::vector<std::string>& arguments) {
  std::ostringstream out;
  std::ostringstream err;
  Console console{out, err};
  const ExitCode code = RunBerthctl(arguments, console);
  return {code, out.str(), err.str()};
}

// An error with details, the way the server sends it.
template <typename... Details>
grpc::Status ErrorWith(grpc::StatusCode code, const std::string& message, const Details&... details) {
  google::rpc::Status status;
  status.set_code(code);
  status.set_message(message);
  (status.add_details()->PackFrom(details), ...);
  return grpc::Status(code, message, status.SerializeAsString());
}

google::rpc::ErrorInfo Reason(const std::string& reason) {
  google::rpc::ErrorInfo info;
  info.set_reason(reason);
  info.set_domain("berth");
  return info;
}

class CommandLineTest : public testing::Test {
 protected:
  Result Do(std::vector<std::string> arguments) {
    arguments.push_back(absl::StrCat("--endpoint=", fake_.endpoint()));
    return Berthctl(arguments);
  }

  // Runs a command that must succeed, and returns what the server was sent.
  std::string Request(const std::vector<std::string>& arguments) {
    const Result result = Do(arguments);
    EXPECT_EQ(result.code, ExitCode::kSuccess) << result.err;
    EXPECT_THAT(result.err, IsEmpty());
    return fake_.last_request();
  }

  // Parses the output of a command as `Message`: it must be one document, with no field that is unknown.
  template <typename Message>
  Message Json(std::vector<std::string> arguments) {
    arguments.push_back("--json");
    const Result result = Do(arguments);
    EXPECT_EQ(result.code, ExitCode::kSuccess) << result.err;
    Message message;
    const auto status = google::protobuf::util::JsonStringToMessage(result.out, &message);
    EXPECT_TRUE(status.ok()) << status.ToString() << "\n" << result.out;
    return message;
  }

  void AddExport(const std::string& name) {
    v1::Export& one = fake_.exports[name];
    one.set_name(name);
    one.set_size_bytes(uint64_t{3} << 29);
    one.mutable_spec()->mutable_image()->set_path(absl::StrCat("/srv/", name, ".raw"));
    one.mutable_spec()->mutable_image()->set_format(v1::IMAGE_FORMAT_RAW);
  }

  void AddAttachment(const std::string& name, const std::string& device) {
    v1::Attachment& one = fake_.attachments[name];
    one.set_name(name);
    one.mutable_spec()->set_export_("disk");
    one.set_device(device);
    one.set_size_bytes(1 << 20);
    one.add_partitions(absl::StrCat(device, "p1"));
    one.set_state(v1::ATTACHMENT_STATE_ATTACHED);
  }

  FakeBerthd fake_;
};

TEST_F(CommandLineTest, ImageCommandsSendWhatWasAskedFor) {
  EXPECT_EQ(Request({"image", "create", "/srv/a.raw", "10G"}),
            "CreateImage path: \"/srv/a.raw\" format: IMAGE_FORMAT_RAW size_bytes: 10737418240");
  const std::vector<std::string> preallocate = {"image",         "create", "/srv/a.raw", "1MiB",
                                                "--preallocate", "-f",     "raw"};
  const std::string preallocated =
      "CreateImage path: \"/srv/a.raw\" format: IMAGE_FORMAT_RAW size_bytes: 1048576 preallocate: true "
      "operation_name: ";
  const std::string first = Request(preallocate);
  EXPECT_THAT(first, testing::StartsWith(absl::StrCat(preallocated, "\"image-create-")));
  EXPECT_NE(Request(preallocate), first);
  std::vector<std::string> named = preallocate;
  named.push_back("--operation=make");
  EXPECT_EQ(Request(named), absl::StrCat(preallocated, "\"make\""));
  EXPECT_EQ(
      Request({"image", "create", "/srv/a.qcow2", "1G", "-f", "qcow2", "-o",
               "compat=0.10,cluster_size=4k,refcount_bits=8,lazy_refcounts=on,extended_l2=off", "-o",
               "compression_type=zstd,data_file=a,,b,backing_fmt=raw,backing_file=c,data_file_raw=off"}),
      "CreateImage path: \"/srv/a.qcow2\" format: IMAGE_FORMAT_QCOW2 size_bytes: 1073741824 qcow2 { "
      "compat: \"0.10\" cluster_size_bytes: 4096 refcount_bits: 8 lazy_refcounts: true "
      "compression_type: COMPRESSION_TYPE_ZSTD backing_file: \"c\" backing_format: IMAGE_FORMAT_RAW "
      "data_file: \"a,b\" }");
  EXPECT_EQ(Request({"image", "create", "/srv/a.qcow2", "-f", "qcow2", "-b", "base", "-F", "qcow2"}),
            "CreateImage path: \"/srv/a.qcow2\" format: IMAGE_FORMAT_QCOW2 qcow2 { backing_file: \"base\" "
            "backing_format: IMAGE_FORMAT_QCOW2 }");
  EXPECT_THAT(Request({"image", "create", "/a", "1G", "-f", "qcow2", "-o", "preallocation=full"}),
              AllOf(HasSubstr("operation_name: \"image-create-"), HasSubstr("PREALLOCATION_FULL")));
  EXPECT_EQ(Request({"image", "info", "/a", "-f", "qcow2", "--backing-chain", "--backing-format=raw"}),
            "InspectImage path: \"/a\" format: IMAGE_FORMAT_QCOW2 backing_chain: true backing_format: "
            "IMAGE_FORMAT_RAW");
  EXPECT_EQ(Request({"image", "info", "/srv/a.raw"}),
            "InspectImage path: \"/srv/a.raw\" format: IMAGE_FORMAT_RAW");
  EXPECT_EQ(
      Request({"image", "resize", "/srv/a.raw", "512K", "--allow-shrink"}),
      "ResizeImage path: \"/srv/a.raw\" format: IMAGE_FORMAT_RAW size_bytes: 524288 allow_shrink: true");
}

v1::Operation MakeDb(v1::OperationState state) {
  v1::Operation operation;
  operation.set_name("make-db");
  operation.set_kind(v1::OPERATION_KIND_CREATE_IMAGE);
  operation.set_subject("/srv/db.raw");
  operation.set_state(state);
  operation.set_unit(v1::OPERATION_UNIT_BYTES);
  operation.set_done(uint64_t{1} << 30);
  operation.set_total(uint64_t{4} << 30);
  if (state == v1::OPERATION_STATE_FAILED) {
    operation.mutable_error()->set_code(grpc::StatusCode::ALREADY_EXISTS);
    operation.mutable_error()->set_reason("ALREADY_EXISTS");
    operation.mutable_error()->set_message("it is there");
  }
  return operation;
}

TEST_F(CommandLineTest, OperationsAreListedAndShown) {
  fake_.operations["make-db"] = MakeDb(v1::OPERATION_STATE_FAILED);
  EXPECT_EQ(Do({"operation", "list"}).out,
            "NAME     WORK          STATE   PROGRESS             STARTED  ON\n"
            "make-db  create-image  failed  25%, 1 GiB of 4 GiB  -        /srv/db.raw\n");
  EXPECT_EQ(Do({"operation", "show", "make-db"}).out,
            "name:      make-db\n"
            "work:      create-image /srv/db.raw\n"
            "state:     failed\n"
            "progress:  25%, 1 GiB of 4 GiB\n"
            "started:   -\n"
            "ended:     -\n"
            "error:     it is there [ALREADY_EXISTS]\n");
  EXPECT_EQ(Json<v1::Operation>({"operation", "show", "make-db"}).done(), uint64_t{1} << 30);
  EXPECT_EQ(Json<v1::ListOperationsResponse>({"operation", "list"}).operations_size(), 1);
  const Result missing = Do({"operation", "show", "none"});
  EXPECT_EQ(missing.code, ExitCode::kNotFound);
  EXPECT_THAT(missing.err, HasSubstr("'berthctl operation list' shows what there is"));
}

TEST_F(CommandLineTest, OperationWatchEndsAsTheWorkDid) {
  fake_.progress = {MakeDb(v1::OPERATION_STATE_RUNNING), MakeDb(v1::OPERATION_STATE_SUCCEEDED)};
  const Result succeeded = Do({"operation", "watch", "make-db"});
  EXPECT_EQ(succeeded.code, ExitCode::kSuccess) << succeeded.err;
  EXPECT_THAT(succeeded.out, HasSubstr("state:     succeeded\n"));
  EXPECT_EQ(fake_.last_request(), "WatchOperation name: \"make-db\"");
  const Result json = Do({"operation", "watch", "make-db", "--json"});
  EXPECT_EQ(std::count(json.out.begin(), json.out.end(), '\n'), 2) << json.out;
  fake_.progress = {MakeDb(v1::OPERATION_STATE_FAILED)};
  EXPECT_EQ(Do({"operation", "watch", "make-db"}).code, ExitCode::kAlreadyExists);
  fake_.progress = {MakeDb(v1::OPERATION_STATE_CANCELLED)};
  EXPECT_EQ(Do({"operation", "watch", "make-db"}).code, ExitCode::kFailure);
  fake_.FailNext(grpc::Status(grpc::StatusCode::NOT_FOUND, "there is no operation"));
  EXPECT_EQ(Do({"operation", "watch", "make-db"}).code, ExitCode::kNotFound);
}

TEST_F(CommandLineTest, OperationCancelWaitsForTheEnd) {
  fake_.progress = {MakeDb(v1::OPERATION_STATE_RUNNING)};
  const Result cancelled = Do({"operation", "cancel", "make-db"});
  EXPECT_EQ(cancelled.code, ExitCode::kSuccess) << cancelled.err;
  EXPECT_TRUE(fake_.operation_cancelled());
  EXPECT_THAT(cancelled.out, HasSubstr("state:     cancelled\n"));
}

TEST_F(CommandLineTest, AnOperationGoesOnAfterTheTimeout) {
  fake_.progress = {MakeDb(v1::OPERATION_STATE_RUNNING)};
  const Result late =
      Do({"image", "create", "/srv/db.raw", "4G", "--preallocate", "--operation=make-db", "--timeout=0.1s"});
  EXPECT_EQ(late.code, ExitCode::kUnavailable);
  EXPECT_THAT(late.err, HasSubstr("the work goes on: 'berthctl operation watch make-db' shows it"));
  EXPECT_EQ(std::count(late.err.begin(), late.err.end(), '\n'), 1) << late.err;
  EXPECT_FALSE(fake_.operation_cancelled());
  fake_.EndOperation();
}

TEST_F(CommandLineTest, ImageInfoIsShownForPeopleAndForProgrammes) {
  v1::ImageInfo& image = fake_.images["/srv/a.raw"];
  image.set_path("/srv/a.raw");
  image.set_format(v1::IMAGE_FORMAT_RAW);
  image.set_size_bytes(uint64_t{10} << 30);
  image.set_allocated_bytes(1536);
  EXPECT_EQ(Do({"image", "info", "/srv/a.raw"}).out,
            "path:       /srv/a.raw\n"
            "format:     raw\n"
            "size:       10 GiB (10737418240 bytes)\n"
            "allocated:  1.5 KiB (1536 bytes)\n"
            "in use:     no\n");
  EXPECT_EQ(Json<v1::ImageInfo>({"image", "info", "/srv/a.raw"}).size_bytes(), uint64_t{10} << 30);
  v1::ImageInfo& top = fake_.images["/srv/top.qcow2"];
  top.set_path("/srv/top.qcow2");
  top.set_format(v1::IMAGE_FORMAT_QCOW2);
  top.set_size_bytes(uint64_t{1} << 30);
  v1::Qcow2Info& qcow2 = *top.mutable_qcow2();
  qcow2.set_compat("1.1");
  qcow2.set_cluster_size_bytes(65'536);
  qcow2.set_refcount_bits(16);
  qcow2.set_compression_type(v1::COMPRESSION_TYPE_ZSTD);
  qcow2.set_backing_file("a.raw");
  qcow2.set_backing_format("raw");
  qcow2.set_full_backing_file("/srv/a.raw");
  qcow2.set_corrupt(true);
  qcow2.add_bitmaps()->set_name("b0");
  qcow2.mutable_bitmaps(0)->set_granularity_bytes(65'536);
  v1::InternalSnapshot& snapshot = *qcow2.add_snapshots();
  snapshot.set_id("1");
  snapshot.set_name("nightly");
  snapshot.set_disk_size_bytes(uint64_t{1} << 30);
  *top.add_backing_chain() = image;
  EXPECT_EQ(Do({"image", "info", "/srv/top.qcow2", "-f", "qcow2", "--backing-chain"}).out,
            "path:       /srv/top.qcow2\n"
            "format:     qcow2\n"
            "size:       1 GiB (1073741824 bytes)\n"
            "allocated:  0 bytes\n"
            "in use:     no\n"
            "compat:     1.1\n"
            "clusters:   64 KiB\n"
            "refcounts:  16 bits\n"
            "compressed: zstd\n"
            "backing:    a.raw (raw), /srv/a.raw\n"
            "corrupt:    yes; it has to be repaired before it is written\n"
            "snapshots:\n"
            "  ID  NAME     CREATED   DISK  VM STATE  VM CLOCK\n"
            "  1   nightly  -        1 GiB       0 B         0\n"
            "bitmaps:\n"
            "  NAME  GRANULARITY  STATE\n"
            "  b0         64 KiB  disabled\n"
            "\n"
            "path:       /srv/a.raw\n"
            "format:     raw\n"
            "size:       10 GiB (10737418240 bytes)\n"
            "allocated:  1.5 KiB (1536 bytes)\n"
            "in use:     no\n");
  // Fields that are zero are there too, under the names of the .proto file.
  EXPECT_THAT(Do({"image", "info", "/srv/a.raw", "--json"}).out,
              AllOf(HasSubstr("\"in_use\": false"), HasSubstr("\"allocated_bytes\": \"1536\"")));
}

TEST_F(CommandLineTest, ExportCreateSendsEveryOption) {
  EXPECT_EQ(Request({"export", "create", "disk", "/srv/a.raw"}),
            "CreateExport name: \"disk\" spec { image { path: \"/srv/a.raw\" format: IMAGE_FORMAT_RAW } }");
  EXPECT_EQ(Request({"export", "create", "m", "--format=memory", "--size=1G", "--shared-writers"}),
            "CreateExport name: \"m\" spec { image { format: IMAGE_FORMAT_MEMORY size_bytes: 1073741824 } "
            "shared_writers: true }");
  EXPECT_EQ(Request({"export", "create", "q", "/a", "-r", "--format=qcow2", "--snapshot=nightly",
                     "--backing-format=raw"}),
            "CreateExport name: \"q\" spec { image { path: \"/a\" format: IMAGE_FORMAT_QCOW2 "
            "snapshot: \"nightly\" backing_format: IMAGE_FORMAT_RAW } read_only: true }");
  EXPECT_EQ(
      Request({"export", "create", "d", "/a", "-r", "-D", "a text", "-o", "1M", "--length=2M", "--cache=none",
               "--discard=ignore", "--iops=5", "--iops-burst=6", "--bps=7K", "--bps-burst=8K"}),
      "CreateExport name: \"d\" spec { image { path: \"/a\" format: IMAGE_FORMAT_RAW cache: CACHE_MODE_NONE "
      "discard: DISCARD_MODE_IGNORE } read_only: true description: \"a text\" offset_bytes: 1048576 "
      "length_bytes: 2097152 rate_limit { operations_per_second: 5 bytes_per_second: 7168 "
      "burst_operations: 6 burst_bytes: 8192 } }");
  EXPECT_EQ(Request({"export", "create", "d", "/a", "--min-block-size=4K", "--preferred-block-size=64K",
                     "--max-payload=1M", "--require-block-size", "--client-resize"}),
            "CreateExport name: \"d\" spec { image { path: \"/a\" format: IMAGE_FORMAT_RAW } block_sizes { "
            "minimum_bytes: 4096 preferred_bytes: 65536 maximum_payload_bytes: 1048576 must_be_asked_for: "
            "true } client_resize: true }");
}

TEST_F(CommandLineTest, ExportShowSaysWhatClientsMustKeepAndMay) {
  AddExport("plain");
  EXPECT_THAT(Do({"export", "show", "plain"}).out,
              AllOf(Not(HasSubstr("block sizes:")), Not(HasSubstr("resize:"))));
  AddExport("disk");
  v1::ExportSpec& spec = *fake_.exports["disk"].mutable_spec();
  spec.mutable_block_sizes()->set_minimum_bytes(4096);
  spec.mutable_block_sizes()->set_must_be_asked_for(true);
  spec.set_client_resize(true);
  EXPECT_THAT(Do({"export", "show", "disk"}).out,
              AllOf(HasSubstr("\nblock sizes:  minimum 4 KiB, required\n"),
                    HasSubstr("\nresize:       clients may\n")));
  EXPECT_EQ(Json<v1::ListExportsResponse>({"export", "list"}).exports(0).spec().block_sizes().minimum_bytes(),
            4096u);
}

TEST_F(CommandLineTest, ExportsOfClientsUnderTls) {
  EXPECT_EQ(
      Request({"export", "create", "d", "/a", "--require-tls", "--allow-client=!dn:CN=a,O=b",
               "--allow-client=psk:*"}),
      "CreateExport name: \"d\" spec { image { path: \"/a\" format: IMAGE_FORMAT_RAW } require_tls: true "
      "allowed_clients: \"!dn:CN=a,O=b\" allowed_clients: \"psk:*\" }");
  EXPECT_THAT(Do({"export", "show", "d"}).out,
              AllOf(HasSubstr("TLS:          required\n"), HasSubstr("clients:      !dn:CN=a,O=b  psk:*\n")));
  EXPECT_EQ(Request({"export", "update", "d", "--require-tls=false", "--allow-client=*"}),
            "UpdateExport name: \"d\" update_mask { paths: \"require_tls\" paths: \"allowed_clients\" } "
            "allowed_clients: \"*\"");
}

TEST_F(CommandLineTest, ExportListFollowsEveryPage) {
  for (int i = 0; i < 25; ++i) AddExport(absl::StrCat("disk", i));
  fake_.page_size = 10;
  EXPECT_EQ(Json<v1::ListExportsResponse>({"export", "list"}).exports_size(), 25);
  EXPECT_EQ(fake_.calls(), 3);
  const std::vector<std::string> lines = absl::StrSplit(Do({"export", "list"}).out, '\n');
  ASSERT_EQ(lines.size(), 27u);
  EXPECT_EQ(lines[0], "NAME       SIZE  CONNECTIONS  ACCESS  ATTACHMENTS  IMAGE");
  EXPECT_EQ(lines[1], "disk0   1.5 GiB            0  rw      -            raw /srv/disk0.raw");
}

TEST_F(CommandLineTest, AListThatNeverEndsIsAnError) {
  AddExport("disk");
  fake_.page_size = 0;  // Each page is empty and names itself as the next.
  const Result result = Do({"export", "list"});
  EXPECT_EQ(result.code, ExitCode::kFailure);
  EXPECT_THAT(result.err, HasSubstr("the same next one"));
}

TEST_F(CommandLineTest, ExportUpdateNamesWhatChanges) {
  AddExport("disk");
  EXPECT_EQ(Request({"export", "update", "disk", "--size=20G"}),
            "UpdateExport name: \"disk\" update_mask { paths: \"size_bytes\" } size_bytes: 21474836480");
  EXPECT_EQ(
      Request({"export", "update", "disk", "--iops=100", "--bps=1M", "--description="}),
      "UpdateExport name: \"disk\" update_mask { paths: \"description\" paths: \"rate_limit\" } rate_limit { "
      "operations_per_second: 100 bytes_per_second: 1048576 }");
  EXPECT_EQ(
      Request({"export", "update", "disk", "--size=1M", "--allow-shrink"}),
      "UpdateExport name: \"disk\" update_mask { paths: \"size_bytes\" } size_bytes: 1048576 allow_shrink: "
      "true");
  // No limit at all is a change as well.
  EXPECT_EQ(Request({"export", "update", "disk", "--iops=0"}),
            "UpdateExport name: \"disk\" update_mask { paths: \"rate_limit\" } rate_limit { }");
  EXPECT_EQ(Request({"export", "update", "disk", "--min-block-size=512", "--client-resize=true"}),
            "UpdateExport name: \"disk\" update_mask { paths: \"block_sizes\" paths: \"client_resize\" } "
            "block_sizes { minimum_bytes: 512 } client_resize: true");
  EXPECT_EQ(Request({"export", "update", "disk", "--client-resize=false"}),
            "UpdateExport name: \"disk\" update_mask { paths: \"client_resize\" }");
  EXPECT_EQ(Do({"export", "update", "disk", "--client-resize=maybe"}).code, ExitCode::kUsage);
  EXPECT_EQ(Do({"export", "update", "disk", "--max-payload=4G"}).code, ExitCode::kUsage);
  EXPECT_EQ(Do({"export", "update", "disk"}).code, ExitCode::kUsage);
}

TEST_F(CommandLineTest, ExportDeleteIsSilent) {
  AddExport("disk");
  EXPECT_EQ(Do({"export", "delete", "disk"}).out, "");
  EXPECT_EQ(Request({"export", "delete", "disk", "--force", "--allow-missing"}),
            "DeleteExport name: \"disk\" allow_missing: true force: true");
  EXPECT_EQ(Do({"export", "delete", "disk", "--json"}).out, "{}\n");
}

TEST_F(CommandLineTest, AttachPrintsTheDeviceAndNothingElse) {
  const Result result = Do({"attach", "disk"});
  EXPECT_EQ(result.code, ExitCode::kSuccess);
  EXPECT_EQ(result.out, "/dev/nbd0\n");
  EXPECT_EQ(result.err, "");
  EXPECT_EQ(fake_.last_request(), "Attach name: \"disk\" spec { export: \"disk\" }");
  EXPECT_EQ(
      Request({"attach", "disk", "--name=second", "--connections=4", "--device=/dev/nbd7", "--block-size=4K",
               "--read-only", "--io-timeout=90", "--dead-connection-timeout=1m"}),
      "Attach name: \"second\" spec { export: \"disk\" device: \"/dev/nbd7\" connections: 4 block_size: 4096 "
      "timeout { seconds: 90 } dead_connection_timeout { seconds: 60 } read_only: true }");
  EXPECT_EQ(Json<v1::Attachment>({"attach", "disk"}).state(), v1::ATTACHMENT_STATE_ATTACHED);
}

TEST_F(CommandLineTest, DetachTakesANameOrADevice) {
  AddAttachment("disk", "/dev/nbd0");
  AddAttachment("other", "/dev/nbd3");
  EXPECT_EQ(Request({"detach", "disk"}), "Detach name: \"disk\"");
  EXPECT_EQ(Request({"detach", "/dev/nbd3", "--force"}), "Detach name: \"other\" force: true");
  const Result missing = Do({"detach", "/dev/nbd9"});
  EXPECT_EQ(missing.code, ExitCode::kNotFound);
  EXPECT_THAT(missing.err, HasSubstr("/dev/nbd9"));
}

TEST_F(CommandLineTest, AttachmentsAreShown) {
  AddAttachment("disk", "/dev/nbd0");
  EXPECT_EQ(Do({"attachment", "list"}).out,
            "NAME  EXPORT  DEVICE      SIZE  STATE     PARTITIONS\n"
            "disk  disk    /dev/nbd0  1 MiB  attached  /dev/nbd0p1\n");
  EXPECT_THAT(Do({"attachment", "show", "disk"}).out, HasSubstr("device:       /dev/nbd0\n"));
  EXPECT_EQ(Json<v1::ListAttachmentsResponse>({"attachment", "list"}).attachments_size(), 1);
}

TEST_F(CommandLineTest, EventsComeOneALine) {
  for (int i = 1; i <= 3; ++i) {
    v1::Event& event = fake_.events.emplace_back();
    event.set_sequence(i);
    event.set_type(v1::EVENT_TYPE_ATTACHED);
    event.set_export_("disk");
    event.set_device("/dev/nbd0");
    event.set_message("\033[2Jhostile\nline");
  }
  const Result two = Do({"events", "--count=2", "--after=7", "--server-id=abc"});
  EXPECT_EQ(two.code, ExitCode::kSuccess) << two.err;
  EXPECT_EQ(fake_.last_request(), "WatchEvents after_sequence: 7 server_id: \"abc\"");
  EXPECT_EQ(two.out,
            "1  -  attached  export=disk  device=/dev/nbd0   [2Jhostile line\n"
            "2  -  attached  export=disk  device=/dev/nbd0   [2Jhostile line\n");
  const Result json = Do({"events", "--count=3", "--json"});
  const std::vector<std::string> lines = absl::StrSplit(json.out, '\n');
  ASSERT_EQ(lines.size(), 4u);
  v1::Event event;
  EXPECT_TRUE(google::protobuf::util::JsonStringToMessage(lines[2], &event).ok());
  EXPECT_EQ(event.sequence(), 3u);
  // A stream that ends is told: it should not.
  const Result ended = Do({"events"});
  EXPECT_EQ(ended.code, ExitCode::kUnavailable);
  EXPECT_THAT(ended.err, HasSubstr("ended"));
}

TEST_F(CommandLineTest, StatisticsSkipWhatWasNeverUsed) {
  v1::GetStatisticsResponse& answer = fake_.statistics.emplace_back();
  v1::ExportStatistics& disk = *answer.add_exports();
  disk.set_export_("disk");
  disk.set_connections(2);
  v1::OperationStatistics& read = *disk.add_operations();
  read.set_operation(v1::IO_OPERATION_READ);
  read.set_completed(4);
  read.set_bytes(16384);
  read.set_latency_nanoseconds(100000);
  disk.add_operations()->set_operation(v1::IO_OPERATION_WRITE);
  answer.add_exports()->set_export_("idle");
  EXPECT_EQ(Do({"stats"}).out,
            "EXPORT  CONNECTIONS  OPERATION  COMPLETED  ERRORS   BYTES  MEAN LATENCY\n"
            "disk    2            read               4       0  16 KiB       25.0 us\n"
            "idle    0            -                  0       0     0 B             -\n");
  EXPECT_EQ(Request({"stats", "disk"}), "GetStatistics export: \"disk\"");
  EXPECT_EQ(Json<v1::GetStatisticsResponse>({"stats"}).exports(0).operations_size(), 2);
}

TEST_F(CommandLineTest, TopPrintsLinesWhereThereIsNoTerminal) {
  for (int i = 0; i < 2; ++i) {
    v1::GetStatisticsResponse& answer = fake_.statistics.emplace_back();
    answer.mutable_time()->set_seconds(1000 + 2 * i);
    v1::ExportStatistics& disk = *answer.add_exports();
    disk.set_export_("disk");
    v1::OperationStatistics& read = *disk.add_operations();
    read.set_operation(v1::IO_OPERATION_READ);
    read.set_completed(100 + i * 2000);
    read.set_bytes(i * 8000000);
    read.set_latency_nanoseconds(uint64_t{50000} * 2000 * i);
  }
  const Result result = Do({"top", "--count=1", "--interval=10ms"});
  EXPECT_EQ(result.code, ExitCode::kSuccess) << result.err;
  EXPECT_THAT(result.out, HasSubstr("disk read: 1000 ops/s, 4.00 MB/s, 50.0 us mean, 0 errors/s\n"));
  EXPECT_THAT(Do({"top", "--count=1", "--interval=10ms"}).out, HasSubstr("idle\n"));
}

TEST_F(CommandLineTest, ErrorsAreOneLineAndSetTheExitCode) {
  const std::vector<std::pair<grpc::StatusCode, ExitCode>> codes = {
      {grpc::StatusCode::INVALID_ARGUMENT, ExitCode::kUsage},
      {grpc::StatusCode::NOT_FOUND, ExitCode::kNotFound},
      {grpc::StatusCode::ALREADY_EXISTS, ExitCode::kAlreadyExists},
      {grpc::StatusCode::FAILED_PRECONDITION, ExitCode::kPrecondition},
      {grpc::StatusCode::DEADLINE_EXCEEDED, ExitCode::kUnavailable},
      {grpc::StatusCode::UNAVAILABLE, ExitCode::kUnavailable},
      {grpc::StatusCode::PERMISSION_DENIED, ExitCode::kPermissionDenied},
      {grpc::StatusCode::INTERNAL, ExitCode::kFailure},
      {grpc::StatusCode::RESOURCE_EXHAUSTED, ExitCode::kFailure},
  };
  for (const auto& [code, expected] : codes) {
    fake_.FailNext(grpc::Status(code, "first\nsecond \033[31m"));
    const int before = fake_.calls();
    const Result result = Do({"export", "create", "disk", "/a"});
    EXPECT_EQ(result.code, expected) << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, testing::StartsWith("berthctl: export create disk: "));
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_THAT(result.err, Not(HasSubstr("\033")));
    // Nothing is sent twice.
    EXPECT_EQ(fake_.calls(), before + 1);
  }
}

TEST_F(CommandLineTest, ErrorsTellReasonFieldAndWayOut) {
  google::rpc::BadRequest bad;
  bad.add_field_violations()->set_field("spec.image.path");
  bad.mutable_field_violations(0)->set_description("must be absolute");
  fake_.FailNext(
      ErrorWith(grpc::StatusCode::INVALID_ARGUMENT, "export 'disk': bad spec", bad, Reason("INVALID_FIELD")));
  EXPECT_EQ(Do({"export", "create", "disk", "a.raw"}).err,
            "berthctl: export create disk: export 'disk': bad spec; spec.image.path: must be absolute "
            "[INVALID_FIELD]\n");

  google::rpc::PreconditionFailure failure;
  failure.add_violations()->set_description("/dev/nbd0p1 is mounted on /mnt");
  fake_.FailNext(ErrorWith(grpc::StatusCode::FAILED_PRECONDITION, "/dev/nbd0p1 is mounted on /mnt", failure,
                           Reason("DEVICE_MOUNTED")));
  const Result mounted = Do({"detach", "disk"});
  EXPECT_EQ(mounted.code, ExitCode::kPrecondition);
  EXPECT_EQ(
      mounted.err,
      "berthctl: detach disk: /dev/nbd0p1 is mounted on /mnt; unmount it, or --force takes it away all the "
      "same, and its users get I/O errors [DEVICE_MOUNTED]\n");

  // What stands in the details alone is told too.
  failure.mutable_violations(0)->set_description("close /mnt/a");
  fake_.FailNext(ErrorWith(grpc::StatusCode::FAILED_PRECONDITION, "/dev/nbd0 is disconnected", failure,
                           Reason("DETACHING")));
  EXPECT_EQ(Do({"detach", "disk", "--force"}).err,
            "berthctl: detach disk: /dev/nbd0 is disconnected; close /mnt/a; 'berthctl attachment show' and "
            "'berthctl events' tell when it is done [DETACHING]\n");

  EXPECT_THAT(Do({"export", "show", "nothing"}).err, HasSubstr("'berthctl export list' shows what there is"));
  fake_.FailNext(ErrorWith(grpc::StatusCode::FAILED_PRECONDITION, "smaller", Reason("WOULD_SHRINK")));
  EXPECT_THAT(Do({"export", "update", "disk", "--size=1M"}).err, HasSubstr("--allow-shrink"));
}

TEST(BerthctlTest, SaysThatNoServerRuns) {
  const Result result = Berthctl({"--endpoint=unix:/nonexistent/berthd.sock", "export", "list"});
  EXPECT_EQ(result.code, ExitCode::kUnavailable);
  EXPECT_EQ(result.err,
            "berthctl: export list: no berthd answers at unix:/nonexistent/berthd.sock (No such file or "
            "directory); "
            "start it, or name its address with --endpoint or BERTH_ENDPOINT\n");
}

TEST(BerthctlTest, AServerThatSaysNothingIsNotWaitedForLonger) {
  std::string directory = "/tmp/berthctl.XXXXXX";  // Short, as sockets' paths must be.
  ASSERT_NE(mkdtemp(directory.data()), nullptr);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof(address.sun_path), "%s/s", directory.c_str());
  const UniqueFd silent(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(bind(silent.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  ASSERT_EQ(listen(silent.get(), 5), 0);
  const Result result =
      Berthctl({absl::StrCat("--endpoint=unix:", address.sun_path), "--timeout=200ms", "export", "list"});
  EXPECT_EQ(result.code, ExitCode::kUnavailable);
  EXPECT_THAT(result.err, HasSubstr("no answer within 200ms"));
  std::filesystem::remove_all(directory);
}

TEST(BerthctlTest, WaitsForAServerOnlyWhenAsked) {
  const Result result =
      Berthctl({"--endpoint=unix:/nonexistent/berthd.sock", "--wait=200ms", "attach", "disk"});
  EXPECT_EQ(result.code, ExitCode::kUnavailable);
  EXPECT_THAT(result.err, HasSubstr("/nonexistent/berthd.sock"));
}

TEST(BerthctlTest, RefusesWhatMakesNoSense) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "subcommand is required"},
      {{"frobnicate"}, "no command 'frobnicate'"},
      {{"export"}, "export: A subcommand is required"},
      {{"export", "create"}, "export is required"},
      {{"image", "create", "/a", "10Q"}, "'10Q'"},
      {{"image", "create", "/a"}, "size"},
      {{"image", "create", "/a", "1G", "-o", "clusters=4"}, "'clusters=4' is no NAME=VALUE"},
      {{"image", "create", "/a", "1G", "-o", "extended_l2=yes"}, "'yes' is none of on and off"},
      {{"image", "create", "/a", "1G", "-o", "preallocation=some"}, "off, metadata, falloc, full"},
      {{"export", "create", "d", "/a", "--cache=warm"}, "'warm' is none of writeback"},
      {{"attach", "d", "--connections=17"}, "17"},
      {{"attach", "d", "--io-timeout=-1"}, "'-1'"},
      {{"events", "--after=3"}, "--server-id"},
      {{"export", "list", "--timeout=0"}, "'0'"},
      {{"export", "show", "\xff"}, "'\\xff' is not UTF-8"},
      {{"completion", "tcsh"}, "tcsh"},
      {{"--endpoint=host:1", "export", "list"}, "--tls-ca is missing"},
      {{"--endpoint=host", "export", "list"}, "unix:PATH or HOST:PORT"},
      {{"--endpoint=unix:/a", "--tls-ca=/b", "export", "list"}, "a Unix socket has no TLS"},
      {{"--endpoint=host:1", "--tls-ca=/nonexistent", "export", "list"},
       "--tls-ca=/nonexistent: cannot be read"},
  };
  for (const auto& [arguments, message] : cases) {
    const Result result = Berthctl(arguments);
    EXPECT_EQ(result.code, ExitCode::kUsage) << message;
    EXPECT_EQ(result.out, "");
    EXPECT_THAT(result.err, AllOf(HasSubstr(message), testing::EndsWith("--help')\n")));
  }
}

TEST(BerthctlTest, EveryCommandHasHelpWithExamples) {
  const std::vector<std::string> commands = {
      "image create",    "image info",      "image resize",   "export create",   "export list",
      "export show",     "export update",   "export delete",  "attach",          "detach",
      "attachment list", "attachment show", "events",         "stats",           "top",
      "completion",      "operation list",  "operation show", "operation watch", "operation cancel"};
  for (const std::string& command : commands) {
    std::vector<std::string> arguments = absl::StrSplit(command, ' ');
    arguments.push_back("--help");
    const Result result = Berthctl(arguments);
    EXPECT_EQ(result.code, ExitCode::kSuccess) << command;
    EXPECT_THAT(result.out, AllOf(HasSubstr("Examples:\n"), HasSubstr(absl::StrCat("berthctl ", command))));
  }
  EXPECT_THAT(Berthctl({"--help"}).out, HasSubstr("Exit status:"));
  EXPECT_THAT(Berthctl({"--version"}).out, testing::StartsWith("berthctl "));
}

}  // namespace
}  // namespace berth::berthctl
