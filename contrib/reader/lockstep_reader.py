#!/usr/bin/env python3
"""Restores a Lockstep store with public packages alone. Written from docs/format.md: § and R are its."""
import argparse, contextlib, getpass, hashlib, hmac, json, os, re, sqlite3, struct, sys
from datetime import datetime, timedelta
from pathlib import Path
import nacl.bindings as sodium, nacl.exceptions, nacl.pwhash.argon2id, pyrage, zstandard

LONGEST, NONE = 2**30, type(None)
SEGMENT_NAME = re.compile(r"log/([0-9a-f]{8})/([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{16})\.seg")
SNAPSHOT_NAME = re.compile(r"snapshots/([0-9a-f]{8})/([0-9a-f]{16})-([0-9a-f]{8})-([0-9a-f]{8})\.snap")

class Refused(Exception):
    pass

class BadHeader(Refused):
    pass

def refuse(place, what, condition=True, error=Refused):
    if condition:
        raise error(f"{place}: {what}")

def sha256(data):
    return hashlib.sha256(data).digest()

# ---- §2: JSON, hex, varints

def fields(raw, place, **types):
    """A JSON object with these keys; one whose types have NONE is optional."""
    def pairs(items):  # A key given twice gets a value of a type that JSON does not have.
        keys = [key for key, _ in items]
        return {key: value if keys.count(key) == 1 else () for key, value in items}
    try:
        found = raw if isinstance(raw, dict) else json.loads(raw.decode(), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        refuse(place, f"no JSON: {error}")
    for key, kinds in types.items():
        value = found.get(key) if type(found) is dict else ()
        good = type(value) in kinds if type(kinds) is tuple else type(value) is kinds
        refuse(place, f"{key} is missing or not what it must be", not good or type(value) is int and value < 0)
        found[key] = value
    return found

def store_id_of(raw, form, place):
    found = fields(raw, place, format=str, version=int)
    refuse(place, f"{found['format']!r} version {found['version']}; this program knows {form!r} version 1",
           (found["format"], found["version"]) != (form, 1))
    return unhex(fields(found, place, store_id=str)["store_id"], 16, place)

def unhex(text, size, place):
    refuse(place, f"not {size} bytes in hex", not re.fullmatch(r"[0-9a-fA-F]{%d}" % (2 * size), str(text)))
    return bytes.fromhex(text)

class Cursor:
    def __init__(self, data, place):
        self.data, self.at, self.place = data, 0, place

    def take(self, count):
        self.at += count
        refuse(self.place, "bytes are missing", self.at > len(self.data))
        return self.data[self.at - count:self.at]

    def varint(self):
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            refuse(self.place, "a malformed varint", value >= 2**64 or shift > 63 or shift and not byte)
            if byte < 128:
                return value
            shift += 7

    def bytes(self):
        return self.take(self.varint())

    def end(self):
        refuse(self.place, "bytes are left over", self.at != len(self.data))

# ---- §5: the node's secret, slots, the key ring

def node_identity(secret):
    """§5.4, as Bech32 text (BIP 173)."""
    for info in (b"derived secrets\1", b"cln-lockstep/v1\1"):
        secret = hmac.digest(hmac.digest(bytes(32), secret, "sha256"), info, "sha256")
    alphabet, prefix = "qpzry9x8gf2tvdw0s3jn54khce6mua7l", "age-secret-key-"
    bits, checksum = "".join(f"{byte:08b}" for byte in secret) + "0000", 1
    values = [int(bits[at:at + 5], 2) for at in range(0, 260, 5)]
    for value in [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + values + [0] * 6:
        top, checksum = checksum >> 25, (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            checksum ^= generator if top >> bit & 1 else 0
    values += [(checksum ^ 1) >> 5 * (5 - at) & 31 for at in range(6)]
    return (prefix + "1" + "".join(alphabet[value] for value in values)).upper()

def seed_of(words, passphrase):
    return hashlib.pbkdf2_hmac("sha512", words, b"mnemonic" + passphrase, 2048, 64)

def ask(what):
    return (getpass.getpass(what + ": ").encode() if sys.stdin.isatty()
            else sys.stdin.buffer.readline().rstrip(b"\r\n"))

def hsm_secret(path):
    """§5.5."""
    raw = Path(path).read_bytes()
    refuse(path, "a cut-off hsm_secret", len(raw) < 32 or raw == bytes(32))
    if len(raw) == 32:
        return raw
    if len(raw) == 73:
        key = nacl.pwhash.argon2id.kdf(32, ask("Passphrase of hsm_secret"), b"c-lightning" + bytes(5), 3, 2**28)
        state = sodium.crypto_secretstream_xchacha20poly1305_state()
        sodium.crypto_secretstream_xchacha20poly1305_init_pull(state, raw[:24], key)
        with contextlib.suppress(nacl.exceptions.CryptoError):
            return sodium.crypto_secretstream_xchacha20poly1305_pull(state, raw[24:])[0]
        refuse(path, "the passphrase does not open it")
    plain = raw[:32] == bytes(32)
    seed = seed_of(raw[32:].split(b"\0")[0], b"" if plain else ask("Passphrase of the words"))
    refuse(path, "not the passphrase of these words", not plain and sha256(seed) != raw[:32])
    return seed

def key_ring(store, store_id, options):
    """R2. The data keys by id, from backup.key or a slot."""
    kinds, texts, files = ["node"], [], []
    if options.key_file:
        refuse(options.key_file, "group or others can read it", os.stat(options.key_file).st_mode & 0o077)
        kinds, files = [], [(options.key_file, Path(options.key_file).read_bytes())]
    elif options.passphrase_file:
        kinds, passphrase = ["passphrase"], Path(options.passphrase_file).read_text().split("\n")[0].rstrip("\r")
    elif options.identity:
        kinds.append("recipient")
        texts = re.findall(r"^AGE-SECRET-KEY-1\w+", Path(options.identity).read_text(), re.M)
    elif options.words:
        seed = seed_of(b" ".join(ask("Words").lower().split()), ask("Their passphrase, or nothing"))
        texts = [node_identity(seed), node_identity(seed[:32])]
    else:
        texts = [node_identity(hsm_secret(options.hsm_secret))]
    identities = [pyrage.x25519.Identity.from_str(text) for text in texts]
    for slot in sorted((store / "keys").glob("[!.]*.age")):
        if slot.stem.split("-")[0] in kinds:
            with contextlib.suppress(pyrage.DecryptError):  # Of another passphrase or recipient.
                sealed = slot.read_bytes()
                files.append((f"keys/{slot.name}", pyrage.decrypt(sealed, identities) if kinds[0] == "node"
                              else pyrage.passphrase.decrypt(sealed, passphrase)))
    refuse("keys", f"this secret opens no slot of the kind {' or '.join(kinds)}", not files)
    place, raw = files[0]
    refuse(place, "the key ring of another store", store_id_of(raw, "lockstep-keyring", place) != store_id)
    keys = [unhex(key, 32, place) for key in fields(raw, place, keys=list)["keys"]]
    return {sha256(b"lockstep key id" + key)[:4]: key for key in keys}

# ---- §6: sealed objects

class Sealed:
    """A segment (1) or snapshot (2). Its header is examined, but authentic only once a frame opened."""
    def __init__(self, opening, name, kind, named):
        (store, store_id, keys), self.name = opening, name
        refuse(name, "it is not there", not (store / name).is_file())
        self.data = data = (store / name).read_bytes()
        good = len(data) >= 128 and data[:8] == b"LOCKSTEP" and sha256(data[:112])[:16] == data[112:128]
        refuse(name, "offset 0: the header is damaged", not good, BadHeader)
        version, found, zero, key_id, of_store, *numbers, zeros, self.prev, self.nonce = struct.unpack_from(
            "<8xHBB4s16sIIQI12s32s16s", data)
        refuse(name, f"format version {version}; this program knows 1", version != 1)
        refuse(name, f"object kind {found}; this program knows 1 to 3", found not in (1, 2, 3))
        refuse(name, "offset 0: reserved bytes are not zero", zero or any(zeros), BadHeader)
        refuse(name, "an object of another store", of_store != store_id)
        refuse(name, "the object of another name", (found, *numbers) != (kind, *named))
        refuse(name, f"wrong key: sealed with {key_id.hex()}", key_id not in keys)
        self.seq, self.key, self.at, self.chain = numbers[2], keys[key_id], 128, sha256(data[:128])

    def frames(self, forgiving):
        """Each frame's number, plaintext and chain. In a segment an interrupted write is forgiven."""
        data, number, end = self.data, self.seq, len(self.data.rstrip(b"\0"))
        while self.at < (end if forgiving else len(data)):
            start, plain = self.at + 8, None
            size, complement = struct.unpack("<II", data[self.at:start].ljust(8, b"\0"))
            valid = size ^ complement == 0xFFFFFFFF and 16 <= size <= LONGEST + 16
            after, mark, count = start + size, struct.pack("<I4s", number % 2**32, b"END."), struct.pack("<Q", number)
            with contextlib.suppress(nacl.exceptions.CryptoError):
                plain = valid and sodium.crypto_aead_xchacha20poly1305_ietf_decrypt(
                    data[start:after], self.chain + count, self.nonce + count, self.key)
            if not plain:
                if forgiving and self.interrupted(number, end - self.at, size if valid else None):
                    return
                refuse(self.name, f"seq {number}, offset {self.at}: damaged")
            cut = forgiving and mark.startswith(data[after:max(after, end)])
            refuse(self.name, f"seq {number}, offset {after}: the end mark is damaged",
                   data[after:after + 8] != mark and not cut)
            self.at, self.chain = after + 8, sha256(self.chain + data[start:after])
            yield number, plain, self.chain
            number += 1

    def interrupted(self, number, w, size):
        """R18 to R20; w as in §11.4, size where the prefix is valid."""
        rest = self.data[self.at:]
        for mark in re.finditer(rb"(?s)(?=(....)END\.)", rest[:w]):
            if 0 < (int.from_bytes(mark[1], "little") - number) % 2**32 <= w // 32:
                return False
        if w < 8 if size is None else w <= size + 8:
            return True
        stretch = w if size is None else size + 16
        first = min(512 - self.at % 512, stretch)
        most = min(~int.from_bytes(rest[4:8], "little") % 2**32, LONGEST + 16)
        parts = [(4 if w <= 16 + most else 8, rest[:first])]
        parts += [(16, rest[at:min(at + 512, stretch)]) for at in range(first, stretch, 512)]
        return w <= stretch and any(len(part) >= least and not any(part) for least, part in parts)

def decompress(stream, body, place, whole):
    try:
        found = stream.decompress(body)
    except zstandard.ZstdError as error:
        refuse(place, f"zstd: {error}")
    refuse(place, "not one zstd frame, or too much", stream.eof != whole or stream.unused_data or len(found) > LONGEST)
    return found

def load_snapshot(opening, generation, base, file):
    """§9, R22. Writes the pages, gives the data_version."""
    name = fields(base, "base", name=str, chain=str)["name"]
    match = SNAPSHOT_NAME.fullmatch(name) or refuse(name, "no snapshot's name")
    of, seq, epoch, index = (int(part, 16) for part in match.groups())
    snapshot = Sealed(opening, name, 2, (of, epoch, seq, index))
    refuse(name, "a snapshot of another generation", of != generation)
    meta, seen, end = None, set(), None
    for number, plain, _ in snapshot.frames(False):
        place, kind, body = f"{name}: frame {number - seq}", plain[0], plain[1:]
        refuse(place, f"frame kind {kind}; this program knows 16 to 18", kind not in (16, 17, 18))
        refuse(place, "a frame out of order", end is not None or (kind == 16) != (meta is None))
        if kind == 16:
            meta = fields(body, place, page_size=int, page_count=int, data_version=(int, NONE))
            size, count = meta["page_size"], meta["page_count"]
            refuse(place, "no page size or count", size not in [2**n for n in range(9, 17)] or count >= 2**32)
            file.truncate(size * count)
        elif kind == 17:
            pages = Cursor(decompress(zstandard.ZstdDecompressor().decompressobj(), body, place, True), place)
            for page, in struct.iter_unpack("<I", pages.take(4 * int.from_bytes(pages.take(4), "little"))):
                refuse(place, f"page {page}: given twice, or none", page in seen or not 1 <= page <= count)
                seen.add(page)
                file.seek((page - 1) * size)
                file.write(pages.take(size))
            pages.end()
        else:
            end = fields(body, place, pages=int)["pages"]
    refuse(name, "frames or pages are missing", end is None or not len(seen) == end == count)
    refuse(name, "another chain than the log names", snapshot.chain != unhex(base["chain"], 32, "base"))
    file.flush()
    return meta["data_version"]

# ---- §11.2, §11.3: segments and records

def unless_unfinished(opening, name, named):
    """R7. None for an object in which nothing stands behind a damaged header."""
    try:
        return Sealed(opening, name, 1, named)
    except BadHeader:
        if any((opening[0] / name).read_bytes()[128:]):
            raise

def newest_generation(opening):
    """R3 to R6. The generation, and its segments in order."""
    paths = (path.relative_to(opening[0]).as_posix() for path in (opening[0] / "log").glob("*/*"))
    calls = [(match[0], tuple(int(match[part], 16) for part in (1, 2, 4, 3)))
             for match in map(SEGMENT_NAME.fullmatch, paths) if match]
    calls.sort(key=lambda call: (call[1][1], call[1][3], call[1][2]))
    for name, named in reversed(calls):
        segment = unless_unfinished(opening, name, named)
        if segment and next(segment.frames(True), None):
            return named[0], [call for call in calls if call[1][0] == named[0]]
    refuse("log", "no segment holds a record")

def records_of(opening, calls):
    """R7 to R13. What is not void: (place, first of its segment?, seq, plaintext, chain)."""
    records, segments, damage, root = [], [], None, None
    for call in calls:
        read, error, voided, segment = [], None, None, unless_unfinished(opening, *call)
        try:
            for seq, plain, chain in segment.frames(True) if segment else ():
                read.append((f"{segment.name}: seq {seq}", not read, seq, plain, chain))
        except Refused as refused:
            error = refused
        bound = read and (segment.seq - 1, segment.prev)
        root = root or bound
        while read:
            before, last = ([root, root] + [(record[2], record[4]) for record in records[-2:]])[-2:]
            if bound == last:
                break  # R10
            if records and bound == before:
                voided = records.pop()  # R11
                break
            if not segments or segments[-1][0] != 1 or not segments[-1][1]:
                gap = f"seq {last[0] + 1} to {bound[0]} are missing before it"
                raise damage or Refused(f"{segment.name}: {gap if bound[0] > last[0] else 'two histories meet'}")
            records[-1] = segments.pop()[1]  # R12
        if read:
            records, damage = records + read, None
            segments.append((len(read), voided))
        damage = damage or error
    if damage:
        raise damage
    return records

# ---- §8: batches

class Decoder:
    """The compressed stream and the shapes of one segment."""
    def __init__(self):
        self.stream, self.shapes = zstandard.ZstdDecompressor(max_window_size=2**19).decompressobj(), []

    def batch(self, body, place):
        batch, statements = Cursor(decompress(self.stream, body, place, False), place), []
        for _ in range(batch.varint()):
            tag = batch.varint()
            if tag == 1:
                shape = batch.bytes()
                refuse(place, "a bad shape", len(shape) > 65536 or len(self.shapes) == 4096 or 0 in shape)
                self.shapes.append([re.split(rb"([\1\2\3])", shape), None])
            refuse(place, "a shape that is not there", tag > 1 + len(self.shapes))
            statements.append(self.values(batch, self.shapes[tag - 2 if tag > 1 else -1]) if tag else batch.bytes())
        batch.end()
        try:
            return [text.decode() for text in statements]
        except UnicodeDecodeError:
            refuse(place, "a statement is not UTF-8")

    def values(self, batch, shape):
        parts, old = shape
        count = len(parts) // 2
        bits = 2**count - 1 if old is None else int.from_bytes(batch.take((count + 7) // 8), "little")
        refuse(batch.place, "unused bits are set", bits >> count)
        new = [batch.bytes() if bits >> at & 1 else old[at] for at in range(count)]
        if sum(map(len, new)) <= 4096:
            shape[1] = new
        made = list(parts)
        made[1::2] = [self.spelled(*pair, batch.place) for pair in zip(parts[1::2], new)]
        return b"".join(made)

    @staticmethod
    def spelled(marker, value, place):
        if marker == b"\1":
            cursor = Cursor(value, place)
            integer = cursor.varint()
            cursor.end()
            refuse(place, "an integer of more than 63 bits", integer >= 2**63)
            return b"%d" % integer
        return b"'%s'" % value.replace(b"'", b"''") if marker == b"\2" else b"x'%s'" % value.hex().encode()

# ---- §11.5: the database

TOKEN = re.compile(r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^]]*\]|--[^\n]*|/\*.*?(?:\*/|\Z)|[\w$]+|.""",
                   re.S)
CLOCK = {"current_timestamp": "%Y-%m-%d %H:%M:%S", "current_date": "%Y-%m-%d", "current_time": "%H:%M:%S"}
ASKING = "strftime", "datetime", "date", "time", "julianday", "unixepoch"
PRAGMAS = "foreign_keys", "defer_foreign_keys", "legacy_alter_table", "quick_check", "integrity_check"
FORBIDDEN = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT,
             sqlite3.SQLITE_CREATE_VTABLE, sqlite3.SQLITE_DROP_VTABLE)

def at_its_time(sql, millis):
    """R27. A definition stays as it is: it asks for no time when it is made."""
    if not re.search(r"'now'|current_(?:time|date)", sql, re.I) or re.match(r"\s*(?:create|alter)\b", sql, re.I):
        return sql
    when, made, calls, before = datetime(1970, 1, 1) + timedelta(milliseconds=millis), [], [], ""
    for token in TOKEN.findall(sql):
        word = token.lower()
        if token == "(":
            calls.append(before in ASKING)
        elif token == ")":
            del calls[-1:]
        elif word == "'now'" and any(calls[-1:]):
            token = f"'{when:%Y-%m-%d %H:%M:%S}.{millis % 1000:03}'"
        elif word in CLOCK:
            token = f"'{when:{CLOCK[word]}}'"
        before = word
        made.append(token)
    return "".join(made)

def allowed(action, first, second, *_):
    """R28."""
    function = action == sqlite3.SQLITE_FUNCTION and second.lower() == "load_extension"
    pragma = action == sqlite3.SQLITE_PRAGMA and first.lower() not in PRAGMAS
    return sqlite3.SQLITE_DENY if action in FORBIDDEN or function or pragma else sqlite3.SQLITE_OK

class Database:
    def __init__(self, path, version):
        self.db = sqlite3.connect(path, isolation_level=None, cached_statements=0)
        self.db.executescript("PRAGMA synchronous = OFF; PRAGMA journal_mode = MEMORY;")
        self.session, self.version = None, version

    def execute(self, _, place, kind, session, version, millis, statements):
        try:
            if session != self.session:  # R24
                self.db.executescript("PRAGMA foreign_keys = ON; PRAGMA legacy_alter_table = OFF;")
                self.session = session
            if kind == 2:
                self.db.execute("BEGIN")
                self.version = version
            self.db.set_authorizer(allowed)
            for sql in statements:
                self.db.execute(at_its_time(sql, millis)).fetchall()
            self.db.set_authorizer(None)
            if kind == 2:
                self.db.execute("COMMIT")
        except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError) as error:
            refuse(place, f"a statement failed: {error}")

    def prove(self):
        """R29."""
        found = self.db.execute("PRAGMA integrity_check").fetchall()
        refuse("the database", f"integrity_check: {found}", found != [("ok",)])
        rows = (self.db.execute("SELECT 1 FROM sqlite_master WHERE name = 'vars'").fetchall()
                and self.db.execute("SELECT intval FROM vars WHERE name = 'data_version'").fetchall())
        refuse("the database", f"data_version is {rows}, but {self.version} in the log",
               [row[0] % 2**32 for row in rows] != [self.version] and (rows or self.version is not None))
        self.db.close()

def replay(records, open_database):
    """§7, R14, R15, R23."""
    held, database, closed = [], None, False
    for place, first, seq, plain, _ in records:
        kind, body, ready = plain[0], plain[1:], []
        refuse(place, f"record kind {kind}; this program knows 1 to 5", not 1 <= kind <= 5)
        refuse(place, f"a record of kind {kind} is out of place", (kind == 1) != first or closed and not first)
        closed = kind == 4
        if kind == 1:
            opened = fields(body, place, time=int, session=str, start=(dict, NONE))
            start, millis, decoder = opened["start"], opened["time"], Decoder()
            session = unhex(opened["session"], 16, place)
            refuse(place, "no beginning of the generation, or another one", (start is None) != (database is not None))
            database = database or open_database(fields(start, place, base=(dict, NONE))["base"])
        elif kind == 3:
            rewind = fields(body, place, time=int, seq=int, data_version=int)
            named = bool(held) and (rewind["seq"], rewind["data_version"]) == (held[0][0], held[0][4])
            refuse(place, "a rewind of a batch that is not the newest", not named)
            millis, ready, held = max(millis, rewind["time"]), held[1:], []
        elif kind in (2, 5):
            cursor = Cursor(body, place)
            version = int.from_bytes(cursor.take(4), "little")
            millis += cursor.varint()
            item = (seq, place, kind, session, version, millis, decoder.batch(body[cursor.at:], place))
            if kind == 2:
                ready, held = held, [item]
            else:
                (held or ready).append(item)
        for item in ready:
            database.execute(*item)
    for item in held:
        database.execute(*item)
    return database

def main():
    parser = argparse.ArgumentParser(description="Restores the database that a Lockstep store holds.")
    parser.add_argument("store", type=Path, help="the folder of the backup")
    parser.add_argument("dest", type=Path, help="the database to make; must not be there")
    secret = parser.add_mutually_exclusive_group(required=True)
    for kind in ("hsm-secret", "key-file", "passphrase-file", "identity"):
        secret.add_argument(f"--{kind}", metavar="FILE")
    secret.add_argument("--words", action="store_true", help="asks for the words, then for their passphrase")
    options = parser.parse_args()
    partial = options.dest.with_name(options.dest.name + ".partial")
    refuse(options.dest, "it is there already", options.dest.exists())
    with open(partial, "xb") as file:
        try:
            marker = options.store / "lockstep.json"
            refuse(options.store, "no store: it has no lockstep.json", not marker.is_file())
            store_id = store_id_of(marker.read_bytes(), "lockstep", "lockstep.json")
            opening = options.store, store_id, key_ring(options.store, store_id, options)
            generation, calls = newest_generation(opening)
            records = records_of(opening, calls)
            database = replay(records, lambda base: Database(
                partial, base and load_snapshot(opening, generation, base, file)))
            database.prove()
            os.fsync(file.fileno())
            os.link(partial, options.dest)
        finally:
            partial.unlink()
    print(f"position: generation {generation}, seq {records[-1][2]}, chain {records[-1][4].hex()}")
    print("data_version:", "none" if database.version is None else database.version)

if __name__ == "__main__":
    try:
        main()
    except (Refused, OSError, pyrage.DecryptError, pyrage.IdentityError, nacl.exceptions.CryptoError) as error:
        sys.exit(f"lockstep_reader: {error}")
