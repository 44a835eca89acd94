"""TLS on one port, passed on in the clear to another."""
import asyncio
import ssl
import sys

port, upstream = int(sys.argv[1]), int(sys.argv[2])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[3], sys.argv[4])


async def copy(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def serve(reader, writer):
    behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", upstream)
    await asyncio.gather(copy(reader, behind_writer), copy(behind_reader, writer))


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    await server.serve_forever()


asyncio.run(main())
