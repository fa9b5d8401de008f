import type { EncodedMap, ImageRow, Pictures, Report, Source } from "./types";

/** Images of one block of pictures in a report; `results/report.py` writes the same number. */
export const BLOCK = 20;
const KEPT_BLOCKS = 40;

interface RawPictures {
  photo: string | null;
  large: string | null;
  references: string[];
  maps: (EncodedMap | null)[];
}

const jpeg = (data: string): string => `data:image/jpeg;base64,${data}`;

/** The data of a report, from its script elements. Pictures are parsed block by block when they are shown. */
export function readEmbedded(page: Document): Source {
  const text = (id: string): string => page.getElementById(id)!.textContent!;
  const blocks = new Map<number, RawPictures[]>();
  return {
    report: JSON.parse(text("data")) as Report,
    rows: JSON.parse(text("rows")) as ImageRow[],
    pictures(index: number): Pictures {
      const number = Math.floor(index / BLOCK);
      let block = blocks.get(number);
      if (block) blocks.delete(number); // moved to the end: the least recently used block is dropped first
      else block = JSON.parse(text(`pictures-${number}`)) as RawPictures[];
      blocks.set(number, block);
      if (blocks.size > KEPT_BLOCKS) blocks.delete(blocks.keys().next().value!);
      const raw = block[index % BLOCK];
      return { photo: raw.photo && jpeg(raw.photo), large: raw.large && jpeg(raw.large), references: raw.references.map(jpeg), maps: raw.maps };
    },
  };
}
