"""Ask Flower's gRPC health service on a port of this machine; exit 0 only if it serves."""

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

with grpc.insecure_channel(f"127.0.0.1:{sys.argv[1]}") as channel:
    answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
sys.exit(answer.status != health_pb2.HealthCheckResponse.SERVING)
