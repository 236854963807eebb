"""What can go wrong with packages and versions, split by who can act.

```
DeltaError
├── PackageFormatError      these bytes will never work: drop them, ask for the full package, report it
│   └── PackageLimitError   well-formed so far, but larger than the reader allows
├── TensorFileError         a file is not a well-formed safetensors file (a builder then treats it as opaque)
├── SourceMismatchError     this device has another source: ask for the full package
├── IntegrityError          a hash differs: never use the result
└── StorageError            this device's disk: free space or repair, then try again
```
"""


class DeltaError(Exception):
    """Root of everything this package raises on purpose."""


class PackageFormatError(DeltaError):
    """The bytes are not what the document describes; the same bytes must never be tried again."""


class PackageLimitError(PackageFormatError):
    """The bytes ask for more memory or disk than the reader allows."""


class TensorFileError(DeltaError):
    """A file is not a well-formed safetensors file."""


class SourceMismatchError(DeltaError):
    """The source version on this device is not the one the package was built from."""


class IntegrityError(DeltaError):
    """A file or a tree does not have the hash it must have."""


class StorageError(DeltaError):
    """Reading or writing this device's disk failed."""
