//! Frames: `length u32 BE | kind u16 BE | header length u16 BE | header (postcard) | body (postcard)`.
//!
//! `length` counts what follows it. Versioning (see [`crate::wire`]): fields are only appended, trailing bytes of header
//! and body are ignored, and a kind that nobody knows is a value, not an error. Bytes that cannot be read are a
//! [`FrameError`], never a panic; the session that brought them is closed, since nobody knows where the next frame begins.

use bytes::{Buf, Bytes, BytesMut};

use crate::wire::{Envelope, Header, Message};

/// Bytes before the header: length, kind, header length.
pub const PREFIX: usize = 8;
/// The part of the prefix that `length` counts.
const COUNTED: usize = 4;

/// Why bytes are no frame, or a message cannot become one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Larger than a frame may be.
    #[error("a frame of {length} bytes is larger than {max} (kind {kind:?})")]
    TooLarge {
        /// Its size, without the length field.
        length: usize,
        /// The cap.
        max: usize,
        /// Its kind where known.
        kind: Option<u16>,
    },
    /// The length field leaves no room for what must follow.
    #[error("a frame of {length} bytes is too short for its kind and header")]
    TooShort {
        /// What the length field says.
        length: usize,
    },
    /// The header cannot be read.
    #[error("the header of a frame of kind {kind} cannot be read: {why}")]
    Header {
        /// Its kind.
        kind: u16,
        /// What postcard says.
        why: String,
    },
    /// The body of a known kind cannot be read.
    #[error("the body of a frame of kind {kind} cannot be read: {why}")]
    Body {
        /// Its kind.
        kind: u16,
        /// What postcard says.
        why: String,
    },
    /// A message that postcard cannot write; nothing a peer can cause.
    #[error("a message of kind {kind} cannot be written: {why}")]
    Unwritable {
        /// Its kind.
        kind: u16,
        /// What postcard says.
        why: String,
    },
}

/// One message as the bytes of one frame. `max_frame` bounds what the length field says.
pub fn encode(header: &Header, message: &Message, max_frame: usize) -> Result<Bytes, FrameError> {
    let kind = message.kind();
    let unwritable = |why: postcard::Error| FrameError::Unwritable {
        kind,
        why: why.to_string(),
    };
    let mut frame = Vec::with_capacity(128);
    frame.extend_from_slice(&[0; PREFIX]);
    let frame = postcard::to_extend(header, frame).map_err(unwritable)?;
    let header_length = frame.len() - PREFIX;
    let mut frame = message.encode_body(frame).map_err(unwritable)?;
    let length = frame.len() - COUNTED;
    let too_large = FrameError::TooLarge {
        length,
        max: max_frame,
        kind: Some(kind),
    };
    if length > max_frame {
        return Err(too_large);
    }
    let (Ok(length), Ok(header_length)) = (u32::try_from(length), u16::try_from(header_length))
    else {
        return Err(too_large);
    };
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame[4..6].copy_from_slice(&kind.to_be_bytes());
    frame[6..8].copy_from_slice(&header_length.to_be_bytes());
    Ok(Bytes::from(frame))
}

/// What one frame held.
#[derive(Debug, Clone, PartialEq)]
pub enum Decoded {
    /// A message of a known kind.
    Envelope {
        /// The message with its header.
        envelope: Envelope,
        /// Its size on the wire, for budgets.
        bytes: usize,
    },
    /// A kind this build does not know: answer [`crate::wire::Unknown`] and go on.
    Unknown {
        /// The kind.
        kind: u16,
        /// What stood before the body.
        header: Header,
    },
}

/// Cuts a stream of bytes into frames. Buffers at most one unfinished frame besides what was read last.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    max_frame: usize,
}

impl Decoder {
    /// Frames whose length field says more than `max_frame` are an error, before any of their bytes are kept.
    pub fn new(max_frame: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            max_frame,
        }
    }

    /// Where to append what was read, with room for `room` more bytes.
    pub fn space(&mut self, room: usize) -> &mut BytesMut {
        self.buffer.reserve(room);
        &mut self.buffer
    }

    /// The next frame; `None` until more bytes come. After an error nothing more can be read.
    pub fn next_frame(&mut self) -> Result<Option<Decoded>, FrameError> {
        let Some((length, _)) = self.buffer.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        if length > self.max_frame {
            return Err(FrameError::TooLarge {
                length,
                max: self.max_frame,
                kind: None,
            });
        }
        if length < PREFIX - COUNTED {
            return Err(FrameError::TooShort { length });
        }
        if self.buffer.len() - COUNTED < length {
            return Ok(None);
        }
        self.buffer.advance(COUNTED);
        let frame = self.buffer.split_to(length);
        decode(&frame).map(Some)
    }
}

/// Reads what the length field counted.
fn decode(frame: &[u8]) -> Result<Decoded, FrameError> {
    let too_short = FrameError::TooShort {
        length: frame.len(),
    };
    let Some((&[k0, k1, h0, h1], rest)) = frame.split_first_chunk::<4>() else {
        return Err(too_short);
    };
    let kind = u16::from_be_bytes([k0, k1]);
    let header_length = usize::from(u16::from_be_bytes([h0, h1]));
    let Some((header, body)) = rest.split_at_checked(header_length) else {
        return Err(too_short);
    };
    let (header, _) =
        postcard::take_from_bytes::<Header>(header).map_err(|why| FrameError::Header {
            kind,
            why: why.to_string(),
        })?;
    let message = Message::decode_body(kind, body).map_err(|why| FrameError::Body {
        kind,
        why: why.to_string(),
    })?;
    Ok(match message {
        Some(message) => Decoded::Envelope {
            envelope: Envelope { header, message },
            bytes: frame.len() + COUNTED,
        },
        None => Decoded::Unknown { kind, header },
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{Epoch, Generation, NodeId};
    use crate::wire::{ApiRequest, Fenced, Heartbeat, Hlc, Unknown};

    const MAX: usize = 4096;

    fn feed(decoder: &mut Decoder, bytes: &[u8]) {
        decoder.space(bytes.len()).extend_from_slice(bytes);
    }

    fn message() -> impl Strategy<Value = Message> {
        prop_oneof![
            (
                any::<u64>(),
                any::<Option<(u64, u64)>>(),
                prop::collection::vec(any::<u128>(), 0..8)
            )
                .prop_map(|(seq, echo, unheard)| Message::from(Heartbeat {
                    seq,
                    echo,
                    unheard: unheard.into_iter().map(NodeId).collect(),
                    ..Heartbeat::default()
                })),
            (".*", prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(path, body)| {
                Message::from(ApiRequest {
                    nonce: 1,
                    method: "GET".to_owned(),
                    path,
                    body: body.into(),
                    by: String::new(),
                })
            }),
            any::<u16>().prop_map(|kind| Message::from(Unknown { kind })),
            ".*".prop_map(|what| Message::from(Fenced {
                epoch: Epoch::NONE,
                refused: Epoch::NONE,
                what
            })),
        ]
    }

    fn header() -> impl Strategy<Value = Header> {
        (
            any::<u64>(),
            any::<i64>(),
            any::<u64>(),
            any::<Option<String>>(),
        )
            .prop_map(|(generation, revision, hlc, trace)| Header {
                epoch: Epoch {
                    generation: Generation(generation),
                    revision,
                },
                hlc: Hlc(hlc),
                trace,
            })
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_the_stream_is_cut(
            sent in prop::collection::vec((header(), message()), 1..12),
            cuts in prop::collection::vec(1usize..200, 1..40),
        ) {
            let mut bytes = Vec::new();
            for (header, message) in &sent {
                bytes.extend_from_slice(&encode(header, message, MAX).unwrap());
            }
            let mut decoder = Decoder::new(MAX);
            let mut got = Vec::new();
            let mut rest = &bytes[..];
            let mut cuts = cuts.iter().cycle();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                feed(&mut decoder, now);
                rest = later;
                while let Some(Decoded::Envelope { envelope, .. }) = decoder.next_frame().unwrap() {
                    got.push((envelope.header, envelope.message));
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let mut decoder = Decoder::new(MAX);
            feed(&mut decoder, &bytes);
            while let Ok(Some(_)) = decoder.next_frame() {}
        }

        #[test]
        fn arbitrary_contents_of_a_well_formed_frame_never_panic(
            kind in 0u16..50, header_length in 0u16..80, rest in prop::collection::vec(any::<u8>(), 0..400),
        ) {
            let mut frame = u32::try_from(rest.len() + 4).unwrap().to_be_bytes().to_vec();
            frame.extend_from_slice(&kind.to_be_bytes());
            frame.extend_from_slice(&header_length.to_be_bytes());
            frame.extend_from_slice(&rest);
            let mut decoder = Decoder::new(MAX);
            feed(&mut decoder, &frame);
            decoder.next_frame().ok();
        }
    }

    /// A frame by hand: kind, a default header with `pad` bytes appended, a body.
    fn by_hand(kind: u16, pad: usize, body: &[u8]) -> Vec<u8> {
        let mut header = postcard::to_stdvec(&Header::default()).unwrap();
        header.resize(header.len() + pad, 0xee);
        let length = 4 + header.len() + body.len();
        let mut frame = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        frame.extend_from_slice(&kind.to_be_bytes());
        frame.extend_from_slice(&u16::try_from(header.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(&header);
        frame.extend_from_slice(body);
        frame
    }

    #[test]
    fn an_unknown_kind_is_a_value_and_the_stream_goes_on() {
        let mut decoder = Decoder::new(MAX);
        feed(&mut decoder, &by_hand(999, 0, b"whatever"));
        let known = encode(&Header::default(), &Unknown { kind: 3 }.into(), MAX).unwrap();
        feed(&mut decoder, &known);
        assert!(matches!(
            decoder.next_frame(),
            Ok(Some(Decoded::Unknown { kind: 999, .. }))
        ));
        assert!(matches!(
            decoder.next_frame(),
            Ok(Some(Decoded::Envelope { .. }))
        ));
        assert_eq!(decoder.next_frame(), Ok(None));
    }

    #[test]
    fn bytes_appended_by_a_later_version_are_ignored() {
        let mut body = postcard::to_stdvec(&Unknown { kind: 3 }).unwrap();
        body.extend_from_slice(b"of a later version");
        let mut decoder = Decoder::new(MAX);
        feed(&mut decoder, &by_hand(7, 5, &body));
        let Ok(Some(Decoded::Envelope { envelope, .. })) = decoder.next_frame() else {
            panic!("not read")
        };
        assert_eq!(envelope.message, Unknown { kind: 3 }.into());
    }

    #[test]
    fn a_frame_above_the_cap_is_refused_at_its_length_field() {
        let mut decoder = Decoder::new(MAX);
        feed(&mut decoder, &5000u32.to_be_bytes());
        assert!(matches!(
            decoder.next_frame(),
            Err(FrameError::TooLarge { length: 5000, .. })
        ));
        let large = ApiRequest {
            nonce: 0,
            method: String::new(),
            path: String::new(),
            body: vec![0; MAX].into(),
            by: String::new(),
        };
        let refused = encode(&Header::default(), &large.into(), MAX);
        assert!(matches!(
            refused,
            Err(FrameError::TooLarge { kind: Some(40), .. })
        ));
    }

    #[test]
    fn a_frame_too_short_for_its_prefix_or_header_is_refused() {
        for bytes in [&[0, 0, 0, 3, 0, 0, 0][..], &[0, 0, 0, 4, 0, 7, 0, 9]] {
            let mut decoder = Decoder::new(MAX);
            feed(&mut decoder, bytes);
            assert!(matches!(
                decoder.next_frame(),
                Err(FrameError::TooShort { .. })
            ));
        }
    }
}
