#include "control/metrics/export_statistics.h"

namespace berth::control {
namespace {

v1::IoOperation ToProto(nbd::Operation operation) {
  switch (operation) {
    case nbd::Operation::kRead:
      return v1::IO_OPERATION_READ;
    case nbd::Operation::kWrite:
      return v1::IO_OPERATION_WRITE;
    case nbd::Operation::kFlush:
      return v1::IO_OPERATION_FLUSH;
    case nbd::Operation::kDiscard:
      return v1::IO_OPERATION_DISCARD;
    case nbd::Operation::kZero:
      return v1::IO_OPERATION_ZERO;
    case nbd::Operation::kPrefetch:
      return v1::IO_OPERATION_PREFETCH;
    case nbd::Operation::kExtents:
      return v1::IO_OPERATION_EXTENTS;
  }
  return v1::IO_OPERATION_UNSPECIFIED;
}

}  // namespace

void FillStatistics(const ExportMetrics& metrics, v1::ExportStatistics& statistics) {
  statistics.clear_operations();
  const OperationMetricsTable table = metrics.Read();
  for (size_t i = 0; i < table.size(); ++i) {
    v1::OperationStatistics& operation = *statistics.add_operations();
    operation.set_operation(ToProto(static_cast<nbd::Operation>(i)));
    operation.set_completed(table[i].completed);
    operation.set_errors(table[i].errors);
    operation.set_bytes(table[i].bytes);
    operation.set_latency_nanoseconds(table[i].latency_nanoseconds);
  }
}

}  // namespace berth::control
