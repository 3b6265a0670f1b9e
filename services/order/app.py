"""The order service, which calls the payment service: `meshrpc run services.order.app:service`."""

import meshrpc
from services.order.book import Book
from services.order.orders import Orders
from services.order.v1 import order_pb2_grpc
from services.payment.v1 import payment_pb2_grpc

service = meshrpc.Service("order", version="v1")
payment = payment_pb2_grpc.PaymentServiceStub(service.channel("payment"))
book = Book(service.settings.state_dir / "orders.db")
order_pb2_grpc.add_OrderServiceServicer_to_server(Orders(book, payment), service)

if __name__ == "__main__":
    service.run()
