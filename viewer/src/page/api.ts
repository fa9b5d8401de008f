import { bytesOf } from "../maps";
import type { EncodedMap, ImageRow, Pictures, Report, Source } from "../types";

export interface MethodInfo {
  name: string;
  about: string;
  accepts_references: boolean;
  needs_references: boolean;
  looks_at_the_whole_set: boolean;
}

export interface Catalogue {
  models: { name: string; about: string; object_note: string }[];
  methods: MethodInfo[];
  limits: { body_mb: number; image_mb: number; pixels: number; images: number; references: number };
}

/** A product profile that the page was started with. */
export interface ServedProfile {
  name: string;
  object: string;
  methods: string[];
  good: number;
  thresholds: (number | null)[];
}

export interface Examples {
  object: string;
  images: string[];
  good: string[];
}

export interface Progress {
  stage: string;
  done: number;
  total: number;
  seconds: number;
}

export interface Inquiry {
  object: string;
  methods: string[];
  model: string;
  images: File[];
  good: File[];
  /** Product profile in place of object, methods, model and known-good images. */
  profile: File | ServedProfile | null;
}

interface Result {
  report: Report;
  rows: ImageRow[];
  pictures: { photo: string | null; large: string | null; references: string[]; maps: (EncodedMap | null)[] }[];
}

/** A refusal of the service, with the names of the files that it is about. */
export class Refusal extends Error {}

export async function getJson<T>(address: string): Promise<T> {
  const response = await fetch(address);
  if (!response.ok) throw new Refusal(`The service answered ${address} with status ${response.status}.`);
  return (await response.json()) as T;
}

export async function getExample(name: string): Promise<File> {
  const response = await fetch(`/v1/examples/${encodeURIComponent(name)}`);
  if (!response.ok) throw new Refusal(`The example ${name} cannot be read.`);
  return new File([await response.blob()], name, { type: "image/jpeg" });
}

/** Name of a file, with its path if it was given in a folder. */
export const nameOf = (file: File): string => file.webkitRelativePath || (file as File & { path?: string }).path || file.name;

interface ErrorBody {
  message: string;
  details?: { field: string; message: string }[];
}

/** The message of an error; images are named by their files instead of their numbers. */
export function messageOf(error: ErrorBody, inquiry: Inquiry): string {
  const lines = (error.details ?? []).map(({ field, message }) => {
    const [kind, number] = field.split("."), files = kind === "references" ? inquiry.good : inquiry.images, file = files[Number(number)];
    return file && number !== undefined ? `${nameOf(file)}: ${message.replace(/^(image|reference) \d+ /, "")}` : null;
  });
  const named = lines.filter((line): line is string => line !== null);
  return named.length ? named.slice(0, 5).join("\n") : error.message;
}

type Watch = (progress: Progress) => void;

/** Inspect images. `onProgress` is called for each step. Throws Refusal with a message for people. */
export async function inspect(inquiry: Inquiry, onProgress: Watch, signal: AbortSignal): Promise<Source> {
  const form = new FormData(), { profile } = inquiry;
  if (profile instanceof File) form.append("profile", profile, "profile");
  else if (profile) form.append("product", profile.name);
  else {
    form.append("object", inquiry.object);
    form.append("model", inquiry.model);
    for (const method of inquiry.methods) form.append("methods", method);
    inquiry.good.forEach((file, i) => form.append("references", file, `${i}`));
  }
  inquiry.images.forEach((file, i) => form.append("images", file, `${i}`));
  const answer = await post("/v1/inspect", form, inquiry, onProgress, signal);
  return sourceOf(answer.result as Result, profile ? { ...inquiry, good: [] } : inquiry);
}

/** Make a product profile of the known-good images. */
export async function makeProfile(inquiry: Inquiry, name: string, onProgress: Watch): Promise<Blob> {
  const form = new FormData();
  form.append("object", inquiry.object);
  form.append("model", inquiry.model);
  form.append("name", name);
  for (const method of inquiry.methods) form.append("methods", method);
  inquiry.good.forEach((file, i) => form.append("images", file, `${i}`));
  const answer = await post("/v1/profile", form, { ...inquiry, images: inquiry.good }, onProgress);
  return new Blob([bytesOf(answer.profile as string) as BlobPart], { type: "application/octet-stream" });
}

/** Send a form and read the lines of the answer up to its result. */
async function post(address: string, form: FormData, inquiry: Inquiry, onProgress: Watch, signal?: AbortSignal): Promise<Record<string, unknown>> {
  const response = await fetch(address, { method: "POST", body: form, signal });
  if (!response.ok) {
    const body = (await response.json().catch(() => null)) as { error: ErrorBody } | null;
    throw new Refusal(body ? messageOf(body.error, inquiry) : `The service answered with status ${response.status}.`);
  }
  for await (const line of linesOf(response.body!)) {
    const event = JSON.parse(line) as Record<string, unknown>;
    if (event.error) throw new Refusal(messageOf(event.error as ErrorBody, inquiry));
    if (!event.stage) return event;
    onProgress(event as unknown as Progress);
  }
  throw new Refusal("The connection ended before the results were complete.");
}

export async function* linesOf(body: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const reader = body.getReader(), decoder = new TextDecoder();
  let parts: string[] = [];
  for (;;) {
    const { done, value } = await reader.read();
    const text = decoder.decode(value, { stream: !done }), pieces = text.split("\n");
    for (const piece of pieces.slice(0, -1)) {
      yield parts.join("") + piece;
      parts = [];
    }
    parts.push(pieces.at(-1)!);
    if (done) break;
  }
  if (parts.join("")) yield parts.join("");
}

/** The viewer's data: rows get the names of their files, and photos are shown from the files in the browser. */
function sourceOf(result: Result, inquiry: Inquiry): Source {
  const addresses = new Map<File, string>();
  const address = (file: File): string => {
    if (!addresses.has(file)) addresses.set(file, URL.createObjectURL(file));
    return addresses.get(file)!;
  };
  const numbers = result.rows.map((row) => Number(row.name)), name = (number: string): string => nameOf(inquiry.images[Number(number)]);
  const jpeg = (data: string): string => `data:image/jpeg;base64,${data}`;
  return {
    report: { ...result.report, errors: result.report.errors.map(([number, reason]) => [name(number), reason]) },
    rows: result.rows.map((row) => ({ ...row, name: name(row.name) })),
    pictures(index: number): Pictures {
      const raw = result.pictures[index];
      return {
        photo: raw.photo && jpeg(raw.photo),
        large: raw.large ? jpeg(raw.large) : address(inquiry.images[numbers[index]]),
        references: inquiry.good.map(address),
        maps: raw.maps,
      };
    },
    release: () => addresses.forEach((one) => URL.revokeObjectURL(one)),
  };
}
