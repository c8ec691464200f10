//! How messages are put on the wire and taken from it.

use std::fmt;
use std::marker::PhantomData;

use prost::Message;
use tonic::codec::BufferSettings;
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

/// tonic's codec of Protocol Buffers with small buffers. Each stream keeps two for as long as it lasts, of 8 KiB and soon 16:
/// with a thousand agents, of which each has two streams, 50 MiB for messages of some hundred bytes. They grow for larger
/// ones.
pub struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> fmt::Debug for Codec<T, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Codec")
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(buffers())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<T, U>::raw_decoder(buffers())
    }
}

/// The first size, and how much of messages that are ready is put together before it goes out: as much stays in use, where tonic
/// has 32 KiB.
fn buffers() -> BufferSettings {
    BufferSettings::new(512, 4 << 10)
}
