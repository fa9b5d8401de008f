import { useRef, useState } from "preact/hooks";
import { count } from "../format";
import { nameOf } from "./api";
import { droppedFiles, imagesOf } from "./files";

interface DropBoxProps {
  id: string;
  title: string;
  hint: string;
  files: File[];
  error?: string | null;
  onFiles: (files: File[]) => void;
}

const LISTED = 4;

/** A place to drop images or folders, or to choose them. */
export function DropBox({ id, title, hint, files, error, onFiles }: DropBoxProps) {
  const [over, setOver] = useState(false), images = useRef<HTMLInputElement>(null), folder = useRef<HTMLInputElement>(null);
  const add = (more: File[]): void => onFiles([...files, ...more]);
  const take = (input: HTMLInputElement, only: boolean): void => {
    const chosen = [...(input.files ?? [])];
    input.value = ""; // the same files can be chosen again
    if (only) void imagesOf(chosen).then(add);
    else add(chosen);
  };
  return (
    <div class={`drop${over ? " over" : ""}${error ? " wrong" : ""}`} id={id} role="group" aria-label={title}
      onDragOver={(event) => { event.preventDefault(); setOver(true); }} onDragLeave={() => setOver(false)}
      onDrop={(event) => { event.preventDefault(); setOver(false); if (event.dataTransfer) void droppedFiles(event.dataTransfer).then(add); }}>
      <b>{title}</b>
      <span class="facts">{hint}</span>
      <span class="drop-buttons">
        <button type="button" class="small" onClick={() => images.current!.click()}>Images…</button>
        <button type="button" class="small" onClick={() => folder.current!.click()}>Folder…</button>
        {files.length > 0 && <button type="button" class="small" id={`${id}-clear`} onClick={() => onFiles([])}>Clear</button>}
      </span>
      <input type="file" multiple hidden ref={images} class="pick-images" aria-label={`${title}: choose images`} onChange={(event) => take(event.currentTarget, false)} />
      <input type="file" multiple hidden ref={folder} class="pick-folder" aria-label={`${title}: choose a folder`} {...{ webkitdirectory: true }} onChange={(event) => take(event.currentTarget, true)} />
      {files.length > 0 && <span class="chosen" role="status">
        {count(files.length, "image")}: {files.slice(0, LISTED).map(nameOf).join(", ")}{files.length > LISTED ? " …" : ""}
      </span>}
      {error && <span class="field-error" role="alert">{error}</span>}
    </div>
  );
}
